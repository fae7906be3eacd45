"""Read scores without our library: `python examples/read_scores.py HOST:PORT [TOPIC]`. Ctrl-C ends it.

Needs aiokafka and msgpack alone. Every update holds all that is known of its video: the latest one suffices.
"""

import asyncio
import contextlib
import sys

import msgpack
from aiokafka import AIOKafkaConsumer


async def main(broker: str, topic: str = "video-scores") -> None:
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=broker,
        auto_offset_reset="earliest",
        isolation_level="read_committed",  # else updates of aborted transactions are seen, too
    )
    async with consumer:
        async for record in consumer:
            update = msgpack.unpackb(record.value)
            score = update["fake_score"] if update["trained"] else None  # None, too, while there was no face
            text = "no score" if score is None else f"{score:.3f}"
            alert = "ALERT" if update["alert"]["state"] == "raised" else ""
            print(update["video_id"], update["seq"], update["status"], text, alert, flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:]))
