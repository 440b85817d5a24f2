"""The worker's job as FastStream's documentation shows how to write it.

One signed cancel for each command, the result published persistent and confirmed, then the
acknowledgement. No ledger, no look-ups, no retry: what the command brings is sent.

    python peer.py COMMANDS_AT_A_TIME
"""

import asyncio
import hashlib
import json
import os
import sys
import time
import uuid

import httpx
from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, ExchangeType, RabbitBroker, RabbitExchange, RabbitMessage, RabbitQueue
from pydantic import BaseModel

AT_A_TIME = int(sys.argv[1])
URL, SID, KEY = (os.environ[name] for name in ("API_URL", "API_SID", "API_KEY"))
SECRET, SALT = os.environ["API_SECRET"].split(":", 1)
CALLS_PER_MINUTE = int(os.environ["API_CALLS_PER_MINUTE"])
# The gateway's time begins in 2012.
EPOCH = 1_325_347_200

broker = RabbitBroker(
    os.environ["AMQP_URL"],
    default_channel=Channel(prefetch_count=AT_A_TIME, on_return_raises=True),
    logger=None,
)
app = FastStream(broker)
results = RabbitExchange("wdt.cancel.results", type=ExchangeType.TOPIC, durable=True, declare=False)
publisher = broker.publisher(exchange=results, persist=True, mandatory=True)
client = httpx.AsyncClient(timeout=30)
turn = asyncio.Lock()
next_call = 0.0


class Command(BaseModel):
    order_no_list: list[str]
    account: str = "default"


async def keep_the_limit() -> None:
    """Calls begin a little more than their share of a minute apart."""
    global next_call
    if CALLS_PER_MINUTE == 0:
        return
    async with turn:
        await asyncio.sleep(next_call - time.monotonic())
        next_call = time.monotonic() + 60.5 / CALLS_PER_MINUTE


async def cancel(orders: list[str]) -> dict:
    await keep_the_limit()
    body = json.dumps([orders])
    params = {
        "sid": SID,
        "key": KEY,
        "salt": SALT,
        "method": "wms.stockother.Out.cancelOrder",
        "timestamp": str(int(time.time()) - EPOCH),
        "v": "1.0",
    }
    signed = sorted({**params, "body": body}.items())
    text = SECRET + "".join(name + value for name, value in signed) + SECRET
    params["sign"] = hashlib.md5(text.encode()).hexdigest()
    answer = await client.post(
        URL, params=params, content=body, headers={"Content-Type": "application/json"}
    )
    answer.raise_for_status()
    answer = answer.json()
    if answer["status"] != 0:
        raise RuntimeError(answer["message"])
    return answer["data"]


@broker.subscriber(
    RabbitQueue("wdt.cancel.commands", declare=False), ack_policy=AckPolicy.NACK_ON_ERROR
)
async def handle(command: Command, message: RabbitMessage) -> None:
    data = await cancel(command.order_no_list)
    cancelled = set(data["success_data"])
    for index, order_no in enumerate(command.order_no_list):
        outcome = "cancelled" if order_no in cancelled else "refused"
        event_id = str(uuid.uuid4())
        await publisher.publish(
            {
                "event_id": event_id,
                "command_id": message.message_id,
                "account": command.account,
                "order_no": order_no,
                "outcome": outcome,
                "index": index,
                "total": len(command.order_no_list),
            },
            routing_key=f"cancel.{command.account}.{outcome}",
            message_id=event_id,
            correlation_id=message.message_id,
        )


if __name__ == "__main__":
    asyncio.run(app.run())
