#!/usr/bin/env bash
# Asks for orders to be cancelled through RabbitMQ's management API, and waits until it knows what became
# of each. For a look by hand: the API is slow and confirms nothing. Needs curl and jq.
#
#   RABBITMQ_API=http://guest:guest@127.0.0.1:15672/api docs/examples/curl/cancel.sh QC202409200002 QC202409200001
#
# COMMAND_ID is the command's id, TIMEOUT how many seconds it waits, VHOST the virtual host, in URL
# encoding. Ends with 0 when all are cancelled, 1 when not, 2 when it could not hear of all within the
# time. What is not heard is not lost: send it again with the same id, and it is told again.
set -euo pipefail

api=${RABBITMQ_API:-http://guest:guest@127.0.0.1:15672/api}
vhost=${VHOST:-%2f}
id=${COMMAND_ID:-$(cat /proc/sys/kernel/random/uuid)}
queue="cancel-example-$$-$RANDOM"

call() { # METHOD PATH [BODY]
  curl --silent --show-error --fail-with-body --max-time 30 -X "$1" "$api/$2" \
    -H 'content-type: application/json' ${3+--data "$3"}
}

# A queue of our own, which the broker removes if we cannot: ten minutes after its last use.
call PUT "queues/$vhost/$queue" '{"durable": true, "arguments": {"x-expires": 600000}}'
trap 'call DELETE "queues/$vhost/$queue"' EXIT
call POST "bindings/$vhost/e/wdt.cancel.results/q/$queue" '{"routing_key": "cancel.#"}' >/dev/null

body=$(jq -cn '{order_no_list: $ARGS.positional}' --args "$@")
message=$(jq -cn --arg id "$id" --arg body "$body" '{
  routing_key: "wdt.cancel.commands", payload: $body, payload_encoding: "string",
  properties: {message_id: $id, content_type: "application/json", delivery_mode: 2}}')
call POST "exchanges/$vhost/amq.default/publish" "$message" | jq -e .routed >/dev/null || {
  echo 'there is no queue wdt.cancel.commands' >&2
  exit 1
}

events=[]
end=$((SECONDS + ${TIMEOUT:-120}))
while [ "$SECONDS" -lt "$end" ]; do
  got=$(call POST "queues/$vhost/$queue/get" \
    '{"count": 100, "ackmode": "ack_requeue_false", "encoding": "auto"}')
  # An event may come twice, with the same event_id.
  events=$(jq -c --arg id "$id" --argjson got "$got" \
    '. + [$got[].payload | fromjson | select(.command_id == $id)] | unique_by(.event_id)' <<<"$events")
  if jq -e 'length > 0 and (map(.index) | unique | length) == .[0].total' <<<"$events" >/dev/null; then
    jq -r 'sort_by(.index)[] | "\(.order_no // "-") \(.outcome) \(.reason.code // "")"' <<<"$events"
    jq -e 'all(.outcome == "cancelled")' <<<"$events" >/dev/null && exit 0
    exit 1
  fi
  sleep 1
done
echo "not heard of all orders of command $id in time" >&2
exit 2
