// The worker's job as rabbitmq-client's documentation shows how to write it.
//
// One signed cancel for each command, the result published persistent and confirmed, then the
// acknowledgement. No ledger, no look-ups, no retry: what the command brings is sent.
//
//     node peer.js COMMANDS_AT_A_TIME

import {createHash, randomUUID} from 'node:crypto'
import {setTimeout as sleep} from 'node:timers/promises'
import {Connection} from 'rabbitmq-client'

const atATime = Number(process.argv[2])
const {AMQP_URL, API_URL, API_SID, API_KEY, API_SECRET, API_CALLS_PER_MINUTE} = process.env
const [, secret, salt] = API_SECRET.match(/^([^:]*):(.*)$/)
const callsPerMinute = Number(API_CALLS_PER_MINUTE)
// The gateway's time begins in 2012.
const EPOCH = 1_325_347_200

const rabbit = new Connection(AMQP_URL)
rabbit.on('error', (error) => console.error('connection', error))

const publisher = rabbit.createPublisher({confirm: true, maxAttempts: 2})

let nextCall = 0

// Calls begin a little more than their share of a minute apart.
async function keepTheLimit() {
  if (callsPerMinute === 0) return
  const now = performance.now()
  const at = Math.max(now, nextCall)
  nextCall = at + 60_500 / callsPerMinute
  await sleep(at - now)
}

async function cancel(orders) {
  await keepTheLimit()
  const body = JSON.stringify([orders])
  const params = {
    sid: API_SID,
    key: API_KEY,
    salt,
    method: 'wms.stockother.Out.cancelOrder',
    timestamp: String(Math.floor(Date.now() / 1000) - EPOCH),
    v: '1.0',
  }
  const signed = Object.entries({...params, body}).sort(([a], [b]) => (a < b ? -1 : 1))
  const text = secret + signed.flat().join('') + secret
  const sign = createHash('md5').update(text).digest('hex')
  const response = await fetch(`${API_URL}?${new URLSearchParams({...params, sign})}`, {
    method: 'POST',
    headers: {'Content-Type': 'application/json'},
    body,
    signal: AbortSignal.timeout(30_000),
  })
  if (!response.ok) throw new Error(`HTTP ${response.status}`)
  const {status, message, data} = await response.json()
  if (status !== 0) throw new Error(message)
  return data
}

const consumer = rabbit.createConsumer({
  queue: 'wdt.cancel.commands',
  queueOptions: {passive: true},
  qos: {prefetchCount: atATime},
}, async (message) => {
  const {order_no_list: orders, account = 'default'} = message.body
  const cancelled = new Set((await cancel(orders)).success_data)
  for (const [index, order_no] of orders.entries()) {
    const outcome = cancelled.has(order_no) ? 'cancelled' : 'refused'
    const event_id = randomUUID()
    await publisher.send({
      exchange: 'wdt.cancel.results',
      routingKey: `cancel.${account}.${outcome}`,
      durable: true,
      mandatory: true,
      messageId: event_id,
      correlationId: message.messageId,
    }, {
      event_id,
      command_id: message.messageId,
      account,
      order_no,
      outcome,
      index,
      total: orders.length,
    })
  }
})
consumer.on('error', (error) => console.error('consumer', error))

process.on('SIGTERM', async () => {
  await consumer.close()
  await publisher.close()
  await rabbit.close()
})
