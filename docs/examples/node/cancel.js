// Asks for orders to be cancelled, and waits until it knows what became of each.
//
//   npm ci
//   AMQP_URL='amqp://guest:guest@127.0.0.1:5672/%2f' node cancel.js QC202409200002 QC202409200001
//
// It reads from a durable queue of its own, bound to the results' exchange, as a service would that
// must not miss an event while it is away; events of other commands are in there, too.
//
// Ends with 0 when all are cancelled, 1 when not, 2 when it could not hear of all within the time. What
// is not heard is not lost: send it again with the same --id, and it is told again.

import { randomUUID } from 'node:crypto';
import { parseArgs } from 'node:util';
import amqplib from 'amqplib';

const COMMANDS = 'wdt.cancel.commands';
const RESULTS = 'wdt.cancel.results';

const { values: options, positionals: orders } = parseArgs({
  allowPositionals: true,
  options: {
    account: { type: 'string', default: 'default' },
    id: { type: 'string', default: randomUUID() },
    queue: { type: 'string', default: 'cancel-example.results' },
    timeout: { type: 'string', default: '120' }, // seconds
  },
});
if (orders.length === 0) {
  console.error('usage: node cancel.js [--account NAME] [--id ID] [--queue NAME] [--timeout SECONDS] ORDER...');
  process.exit(64);
}

const connection = await amqplib.connect(process.env.AMQP_URL ?? 'amqp://guest:guest@127.0.0.1:5672/%2f');
try {
  process.exitCode = await cancel(connection);
} finally {
  await connection.close().catch(() => {}); // It may be broken already.
}

async function cancel(connection) {
  const channel = await connection.createConfirmChannel();
  await channel.assertExchange(RESULTS, 'topic', { durable: true });
  await channel.assertQueue(options.queue, { durable: true, arguments: { 'x-queue-type': 'quorum' } });
  await channel.bindQueue(options.queue, RESULTS, `cancel.${options.account}.#`);
  // An account that the worker does not know is told with `_` in its place.
  await channel.bindQueue(options.queue, RESULTS, 'cancel._.#');

  const heard = new Promise((resolve, reject) => {
    const seen = new Set(); // An event may come twice, with the same event_id.
    const outcomes = new Map(); // By the order's place in the command.
    const late = setTimeout(() => {
      console.error(`not heard of all orders of command ${options.id} in time`);
      resolve(2);
    }, Number(options.timeout) * 1000);
    const end = (finish, value) => {
      clearTimeout(late);
      finish(value);
    };
    connection.on('error', (error) => end(reject, error));
    connection.on('close', () => end(reject, new Error('the connection was closed')));
    channel.on('error', (error) => end(reject, error));
    // A command that finds no queue comes back, before its confirm.
    channel.on('return', () => end(reject, new Error(`there is no queue ${COMMANDS}`)));

    channel.prefetch(100);
    channel.consume(options.queue, (message) => {
      if (message === null) {
        end(reject, new Error('the broker took the queue away'));
        return;
      }
      const event = JSON.parse(message.content.toString());
      if (event.command_id === options.id && !seen.has(event.event_id)) {
        seen.add(event.event_id);
        outcomes.set(event.index, event.outcome);
        show(event);
      }
      // After it is handled: here, shown. A service would record it first.
      channel.ack(message);
      if (event.command_id === options.id && outcomes.size === event.total) {
        const done = [...outcomes.values()].every((outcome) => outcome === 'cancelled');
        // The acknowledgement has to reach the broker before the connection is closed.
        channel.close().then(() => end(resolve, done ? 0 : 1), (error) => end(reject, error));
      }
    }).catch((error) => end(reject, error));
  });

  const body = Buffer.from(JSON.stringify({ order_no_list: orders, account: options.account }));
  channel.sendToQueue(COMMANDS, body, {
    messageId: options.id,
    contentType: 'application/json',
    persistent: true,
    mandatory: true,
  });
  // When it is in the queue; an error otherwise: it may then be sent again, with the same id.
  await Promise.race([channel.waitForConfirms(), heard]);
  return heard;
}

function show(event) {
  const why = event.reason ? ` ${event.reason.code}: ${event.reason.message}` : '';
  console.log(`${event.order_no ?? '-'} ${event.outcome}${why}`);
}
