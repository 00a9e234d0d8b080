"""paho-mqtt against a broker: paho_judge.py PORT WEBSOCKET_PORT PASSWORD_PORT. Prints what held; fails at the first that does not."""

import queue
import sys
import time

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

PATIENCE = 15
PLAIN, WEB, GUARDED = (int(argument) for argument in sys.argv[1:4])


class Client:
    """A client whose events are waited for."""

    def __init__(self, name, version, port=PLAIN, transport="tcp", session=0, will=None, login=None):
        v5 = version == mqtt.MQTTv5
        clean = {} if v5 else {"clean_session": session == 0}
        self.mqtt = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, name, protocol=version, transport=transport, **clean
        )
        self.connected, self.subscribed, self.messages, self.published = (queue.Queue() for _ in range(4))
        self.mqtt.on_connect = lambda _c, _u, flags, code, _p: self.connected.put((flags.session_present, code))
        self.mqtt.on_subscribe = lambda _c, _u, _m, codes, _p: self.subscribed.put([c.value for c in codes])
        self.mqtt.on_message = lambda _c, _u, message: self.messages.put(message)
        if will:
            self.mqtt.will_set(*will)
        if login:
            self.mqtt.username_pw_set(*login)
        connect = {}
        if v5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = session
            connect = {"clean_start": session == 0, "properties": properties}
        self.mqtt.connect("127.0.0.1", port, 30, **connect)
        self.mqtt.loop_start()
        self.present, self.code = self.connected.get(timeout=PATIENCE)

    def subscribe(self, *arguments, **named):
        self.mqtt.subscribe(*arguments, **named)
        return self.subscribed.get(timeout=PATIENCE)

    def publish(self, *arguments, **named):
        info = self.mqtt.publish(*arguments, **named)
        info.wait_for_publish(PATIENCE)
        assert info.is_published(), arguments

    def message(self):
        return self.messages.get(timeout=PATIENCE)

    def close(self):
        self.mqtt.disconnect()
        self.mqtt.loop_stop()

    def die(self):
        self.mqtt.loop_stop()
        self.mqtt.socket().close()


def same(found, expected):
    assert found == expected, f"found {found!r}, expected {expected!r}"


def every_qos(version, port, transport):
    taker = Client("paho-taker", version, port, transport)
    giver = Client("paho-giver", version, port, transport)
    for qos in range(3):
        topic = f"paho/{version}/{transport}/{qos}"
        same(taker.subscribe(topic, qos), [qos])
        for number in range(50):
            giver.publish(topic, str(number), qos)
        got = [taker.message() for _ in range(50)]
        same([(m.payload.decode(), m.qos, m.retain) for m in got], [(str(n), qos, False) for n in range(50)])
        # Larger than one read.
        giver.publish(topic, "x" * 200_000, qos)
        same(len(taker.message().payload), 200_000)
    giver.close()
    taker.close()


def kept_and_willed(version):
    giver = Client("paho-dying", version, will=("paho/will", "gone", 1, False))
    giver.publish("paho/kept", "kept", 1, retain=True)
    taker = Client("paho-heir", version)
    taker.subscribe([("paho/will", 1), ("paho/kept", 1)])
    kept = taker.message()
    same((kept.payload, kept.retain), (b"kept", True))
    giver.die()
    same(taker.message().payload, b"gone")
    taker.publish("paho/kept", "", 1, retain=True)
    taker.close()


def session(version):
    name = f"paho-session-{version}"
    first = Client(name, version, session=600)
    same(first.present, False)
    first.subscribe("paho/session", 2)
    first.close()
    giver = Client("paho-giver", version)
    for qos in (1, 2):
        giver.publish("paho/session", str(qos), qos)
    giver.close()
    second = Client(name, version, session=600)
    same(second.present, True)
    same(sorted(second.message().payload for _ in range(2)), [b"1", b"2"])
    second.close()
    Client(name, version).close()


def properties():
    taker, giver = Client("paho-taker", mqtt.MQTTv5), Client("paho-giver", mqtt.MQTTv5)
    identifier = Properties(PacketTypes.SUBSCRIBE)
    identifier.SubscriptionIdentifier = 4711
    taker.subscribe("paho/p", options=SubscribeOptions(qos=1, noLocal=True), properties=identifier)
    sent = Properties(PacketTypes.PUBLISH)
    sent.UserProperty = [("b", "1"), ("a", "2"), ("b", "3")]
    sent.ContentType, sent.ResponseTopic, sent.CorrelationData = "text/plain", "answers", b"\0\1"
    sent.PayloadFormatIndicator, sent.MessageExpiryInterval, sent.TopicAlias = 1, 100, 3
    giver.publish("paho/p", "m", 1, properties=sent)
    got = taker.message().properties
    same(got.UserProperty, sent.UserProperty)
    same((got.ContentType, got.ResponseTopic, got.CorrelationData), ("text/plain", "answers", b"\0\1"))
    same((got.PayloadFormatIndicator, got.SubscriptionIdentifier), (1, [4711]))
    assert 0 < got.MessageExpiryInterval <= 100
    taker.publish("paho/p", "my own", 1)
    time.sleep(0.2)
    assert taker.messages.empty()
    giver.close()
    taker.close()


def passwords(version):
    good = Client("paho-user", version, GUARDED, login=("meter", "right"))
    same(good.code.value, 0)
    good.close()
    bad = Client("paho-user", version, GUARDED, login=("meter", "wrong"))
    assert bad.code.is_failure, bad.code
    bad.mqtt.loop_stop()


for version in (mqtt.MQTTv311, mqtt.MQTTv5):
    every_qos(version, PLAIN, "tcp")
    every_qos(version, WEB, "websockets")
    kept_and_willed(version)
    session(version)
    passwords(version)
    print(f"held: version {version}, every QoS, WebSocket, kept, will, session, passwords")
properties()
print("held: properties")
