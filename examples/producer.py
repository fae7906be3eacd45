"""Publish media segments without our library: `python examples/producer.py HOST:PORT VIDEO_ID SEGMENT...`.

Each SEGMENT is a file that can be decoded on its own, as `ffmpeg -f segment` or an HLS packager cut them.
"""

import asyncio
import sys
import time
from pathlib import Path

import msgpack
from aiokafka import AIOKafkaProducer


async def main(broker: str, video_id: str, *segments: str, topic: str = "video-chunks") -> None:
    async with AIOKafkaProducer(bootstrap_servers=broker, max_request_size=16_000_000) as producer:
        for seq, path in enumerate(segments):
            chunk = {
                "v": 1,
                "video_id": video_id,
                "seq": seq,
                "data": Path(path).read_bytes(),
                "captured_at_ms": round(1000 * time.time()),
                "last": seq == len(segments) - 1,
            }
            await producer.send_and_wait(topic, msgpack.packb(chunk), key=video_id.encode())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
