#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The Python OmniDaemon (omnidaemon 0.1.1 on PyPI) doing what our benchmark does: publishes tasks and handles them, by its own SDK, on one Redis for bus and
storage. Prints tasks a second, from the first publish to the last result.

    EVENT_BUS_TYPE=redis_stream STORAGE_BACKEND=redis REDIS_URL=… PYTHON python_omnidaemon.py TASKS
"""
import asyncio
import logging
import sys
import time

from omnidaemon import OmniDaemonSDK
from omnidaemon.schemas import AgentConfig, EventEnvelope, PayloadBase, SubscriptionConfig

CONTENT = "0" * 298
IN_FLIGHT = 20  # more, and its pool of connections refuses


async def main(total):
    logging.disable(logging.CRITICAL)
    sdk, done, all_done = OmniDaemonSDK(), 0, asyncio.Event()

    async def handle(_task):
        nonlocal done
        done += 1
        if done == total:
            all_done.set()
        return {"ok": True}

    config = SubscriptionConfig(reclaim_idle_ms=180000, dlq_retry_limit=3, consumer_count=4)
    await sdk.register_agent(agent_config=AgentConfig(topic="bench-python", name="bench", callback=handle, config=config))
    await sdk.start()
    start = time.monotonic()
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def publish():
        async with gate:
            await sdk.publish_task(event_envelope=EventEnvelope(topic="bench-python", payload=PayloadBase(content=CONTENT)))

    await asyncio.gather(*(publish() for _ in range(total)))
    await asyncio.wait_for(all_done.wait(), 300)
    print(total / (time.monotonic() - start))
    await sdk.shutdown()


asyncio.run(main(int(sys.argv[1])))
