"""Everything that speaks to Kafka; only this package and `streamer.service` import aiokafka."""
