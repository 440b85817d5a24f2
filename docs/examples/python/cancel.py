"""Asks for orders to be cancelled, and waits until it knows what became of each.

    python3 -m venv .venv && .venv/bin/pip install -r requirements.txt
    AMQP_URL='amqp://guest:guest@127.0.0.1:5672/%2f' .venv/bin/python cancel.py QC202409200002 QC202409200001

Ends with 0 when all are cancelled, 1 when not, 2 when it could not hear of all within the time. What
is not heard is not lost: send it again with the same --id, and it is told again.
"""

import argparse
import json
import os
import sys
import time
import uuid

import pika

COMMANDS = "wdt.cancel.commands"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("orders", nargs="+", metavar="ORDER")
    parser.add_argument("--account", default="default")
    parser.add_argument("--id", default=str(uuid.uuid4()), help="the command's id")
    parser.add_argument("--timeout", type=float, default=120, help="seconds")
    args = parser.parse_args()

    url = os.environ.get("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2f")
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        channel = connection.channel()
        return cancel(channel, args)
    finally:
        connection.close()


def cancel(channel, args) -> int:
    # A queue of our own, named by the broker and gone with this connection.
    replies = channel.queue_declare("", exclusive=True).method.queue

    # With confirms and `mandatory` this returns when the command is in the queue, and raises an error
    # otherwise: it may then be sent again, with the same id.
    channel.confirm_delivery()
    channel.basic_publish(
        exchange="",
        routing_key=COMMANDS,
        body=json.dumps({"order_no_list": args.orders, "account": args.account}).encode(),
        properties=pika.BasicProperties(
            message_id=args.id,
            reply_to=replies,
            content_type="application/json",
            delivery_mode=pika.DeliveryMode.Persistent,
        ),
        mandatory=True,
    )

    seen = set()  # An event may come twice, with the same event_id.
    outcomes = {}  # By the order's place in the command.
    end = time.monotonic() + args.timeout
    for method, _, body in channel.consume(replies, inactivity_timeout=0.2):
        if method is not None:
            event = json.loads(body)
            if event["event_id"] not in seen:
                seen.add(event["event_id"])
                outcomes[event["index"]] = event["outcome"]
                show(event)
            # After it is handled: here, shown. A service would record it first.
            channel.basic_ack(method.delivery_tag)
            if len(outcomes) == event["total"]:
                return 0 if set(outcomes.values()) == {"cancelled"} else 1
        if time.monotonic() >= end:
            print(f"not heard of all orders of command {args.id} in time", file=sys.stderr)
            return 2
    raise RuntimeError("the broker took the queue away")


def show(event) -> None:
    reason = event.get("reason")
    why = f" {reason['code']}: {reason['message']}" if reason else ""
    print(f"{event.get('order_no', '-')} {event['outcome']}{why}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
