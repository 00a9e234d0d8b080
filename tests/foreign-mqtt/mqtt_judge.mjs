// mqtt.js against a broker: mqtt_judge.mjs PORT WEBSOCKET_PORT PASSWORD_PORT. Prints what held; fails at the first that does not.
import assert from "node:assert/strict";
import { once } from "node:events";
import { setTimeout as pause } from "node:timers/promises";
import mqtt from "mqtt";

const [plain, web, guarded] = process.argv.slice(2).map(Number);
const patience = () => ({ signal: AbortSignal.timeout(15_000) });

async function connect(url, options) {
  const client = mqtt.connect(url, { reconnectPeriod: 0, connectTimeout: 15_000, ...options });
  client.seen = [];
  client.on("message", (topic, payload, packet) => client.seen.push({ topic, payload: payload.toString(), packet }));
  const [connack] = await once(client, "connect", patience());
  client.present = connack.sessionPresent;
  return client;
}

async function seen(client, count) {
  for (let left = 1500; client.seen.length < count; left -= 1) {
    assert.ok(left > 0, `only ${client.seen.length} of ${count} came`);
    await pause(10);
  }
  return client.seen.splice(0, count);
}

for (const protocolVersion of [4, 5]) {
  for (const url of [`mqtt://127.0.0.1:${plain}`, `ws://127.0.0.1:${web}/mqtt`]) {
    const taker = await connect(url, { protocolVersion, clientId: "js-taker" });
    const giver = await connect(url, { protocolVersion, clientId: "js-giver" });
    for (const qos of [0, 1, 2]) {
      const topic = `js/${protocolVersion}/${qos}`;
      const [granted] = await taker.subscribeAsync(topic, { qos });
      assert.equal(granted.qos, qos);
      for (let number = 0; number < 50; number += 1) await giver.publishAsync(topic, String(number), { qos });
      const got = await seen(taker, 50);
      assert.deepEqual(got.map((m) => [m.payload, m.packet.qos]), Array.from({ length: 50 }, (_, n) => [String(n), qos]));
      await giver.publishAsync(topic, "x".repeat(200_000), { qos });
      assert.equal((await seen(taker, 1))[0].payload.length, 200_000);
    }
    await giver.endAsync();
    await taker.endAsync();
  }
  const url = `mqtt://127.0.0.1:${plain}`;
  // Kept and willed.
  const will = { topic: "js/will", payload: "gone", qos: 1, retain: false };
  const dying = await connect(url, { protocolVersion, clientId: "js-dying", will });
  await dying.publishAsync("js/kept", "kept", { qos: 1, retain: true });
  const heir = await connect(url, { protocolVersion, clientId: "js-heir" });
  await heir.subscribeAsync(["js/will", "js/kept"], { qos: 1 });
  const [kept] = await seen(heir, 1);
  assert.deepEqual([kept.payload, kept.packet.retain], ["kept", true]);
  dying.stream.destroy();
  assert.equal((await seen(heir, 1))[0].payload, "gone");
  await heir.publishAsync("js/kept", "", { qos: 1, retain: true });
  await heir.endAsync();
  // A session that lasts.
  const lasting = { protocolVersion, clientId: "js-session", clean: false, properties: protocolVersion === 5 ? { sessionExpiryInterval: 600 } : undefined };
  const first = await connect(url, lasting);
  assert.equal(first.present, false);
  await first.subscribeAsync("js/session", { qos: 2 });
  await first.endAsync();
  const giver = await connect(url, { protocolVersion, clientId: "js-giver" });
  for (const qos of [1, 2]) await giver.publishAsync("js/session", String(qos), { qos });
  await giver.endAsync();
  const second = await connect(url, lasting);
  assert.equal(second.present, true);
  assert.deepEqual((await seen(second, 2)).map((m) => m.payload).sort(), ["1", "2"]);
  await second.endAsync();
  await (await connect(url, { protocolVersion, clientId: "js-session", clean: true })).endAsync();
  // Passwords.
  const door = `mqtt://127.0.0.1:${guarded}`;
  await (await connect(door, { protocolVersion, username: "meter", password: "right" })).endAsync();
  const refused = mqtt.connect(door, { protocolVersion, username: "meter", password: "wrong", reconnectPeriod: 0 });
  const [error] = await once(refused, "error", patience()).catch((reason) => [reason]);
  assert.equal(error.code, protocolVersion === 5 ? 0x86 : 4);
  await refused.endAsync(true);
  console.log(`held: version ${protocolVersion}, every QoS, WebSocket, kept, will, session, passwords`);
}
const url = `mqtt://127.0.0.1:${plain}`;
// Aliases both ways, properties in order.
const taker = await connect(url, { protocolVersion: 5, properties: { topicAliasMaximum: 4 } });
const giver = await connect(url, { protocolVersion: 5, autoAssignTopicAlias: true, autoUseTopicAlias: true });
await taker.subscribeAsync("js/p/#", { qos: 1, properties: { subscriptionIdentifier: 4711 } });
const userProperties = { b: ["1", "3"], a: "2" };
const properties = { contentType: "text/plain", responseTopic: "answers", correlationData: Buffer.from([0, 1]), messageExpiryInterval: 100, userProperties };
for (const topic of ["js/p/1", "js/p/1", "js/p/2", "js/p/1"]) await giver.publishAsync(topic, topic, { qos: 1, properties: { ...properties } });
for (const message of await seen(taker, 4)) {
  assert.equal(message.topic, message.payload);
  const got = message.packet.properties;
  assert.deepEqual({ ...got.userProperties }, userProperties);
  assert.deepEqual([got.contentType, got.responseTopic, [...got.correlationData], got.subscriptionIdentifier], ["text/plain", "answers", [0, 1], 4711]);
}
await giver.endAsync();
await taker.endAsync();
console.log("held: aliases and properties");
