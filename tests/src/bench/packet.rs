//! The few MQTT 3.1.1 packets that a load generator needs, made by hand.
//!
//! Called by `load` and its kin. Packets of one stream have one length, so that reading is counting: nothing is parsed
//! but a type nibble and, where it must be acknowledged, a packet id.

/// Bytes of every payload.
pub const PAYLOAD: usize = 256;
/// Bytes of PUBACK.
pub const PUBACK: usize = 4;
/// The type nibbles that streams are checked by.
pub const TYPE_PUBLISH: u8 = 0x30;
/// See [`TYPE_PUBLISH`].
pub const TYPE_PUBACK: u8 = 0x40;

/// Fixed header of a PUBLISH of ours: its remaining length always takes two bytes.
const HEAD: usize = 3;

/// A CONNECT without keep-alive.
#[must_use]
pub fn connect(client_id: &str, clean: bool) -> Vec<u8> {
    let mut body = vec![0, 4];
    body.extend(b"MQTT");
    body.extend([4, u8::from(clean) << 1, 0, 0]);
    body.extend(text(client_id));
    packet(0x10, &body)
}

/// A SUBSCRIBE to some filters at one QoS.
#[must_use]
pub fn subscribe(filters: &[String], qos: u8) -> Vec<u8> {
    let mut body = vec![0, 1];
    for filter in filters {
        body.extend(text(filter));
        body.push(qos);
    }
    packet(0x82, &body)
}

/// A DISCONNECT.
#[must_use]
pub fn disconnect() -> [u8; 2] {
    [0xE0, 0]
}

/// Appends the PUBACK of a PUBLISH of QoS 1 on a topic of that length.
pub fn acknowledge(publish: &[u8], topic: usize, out: &mut Vec<u8>) {
    let at = id_at(topic);
    out.extend([TYPE_PUBACK, 2, publish[at], publish[at + 1]]);
}

/// Bytes of a PUBLISH on a topic of that length.
#[must_use]
pub fn publish_bytes(topic: usize, qos: u8) -> usize {
    id_at(topic) + if qos > 0 { 2 } else { 0 } + PAYLOAD
}

fn id_at(topic: usize) -> usize {
    HEAD + 2 + topic
}

/// Some PUBLISH packets in a row, sent again and again with new packet ids.
#[derive(Debug)]
pub struct Burst {
    bytes: Vec<u8>,
    topic: usize,
    qos: u8,
    next_id: u16,
}

impl Burst {
    /// One packet for each topic; all topics have one length.
    #[must_use]
    pub fn new(topics: &[String], qos: u8) -> Self {
        let topic = topics.first().map_or(0, String::len);
        let mut bytes = Vec::new();
        for name in topics {
            debug_assert_eq!(name.len(), topic, "one length for all topics of a burst");
            let mut body = text(name);
            if qos > 0 {
                body.extend([0, 0]);
            }
            body.extend([b'x'; PAYLOAD]);
            bytes.extend(packet(TYPE_PUBLISH | qos << 1, &body));
        }
        Self {
            bytes,
            topic,
            qos,
            next_id: 1,
        }
    }

    /// The packets, with the ids that follow those of the last call.
    pub fn renew(&mut self) -> &[u8] {
        if self.qos > 0 {
            let at = id_at(self.topic);
            for packet in self
                .bytes
                .chunks_exact_mut(publish_bytes(self.topic, self.qos))
            {
                packet[at..at + 2].copy_from_slice(&self.next_id.to_be_bytes());
                self.next_id = self.next_id.checked_add(1).unwrap_or(1);
            }
        }
        &self.bytes
    }

    /// Overwrites a part of the topic of the packet at `index`.
    pub fn rename(&mut self, index: usize, from: usize, part: &[u8]) {
        let at = index * publish_bytes(self.topic, self.qos) + HEAD + 2 + from;
        self.bytes[at..at + part.len()].copy_from_slice(part);
    }
}

/// Counts packets of one length in a stream of bytes.
#[derive(Debug)]
pub struct Stride {
    each: usize,
    first: u8,
    rest: Vec<u8>,
}

/// A packet of another kind came: the count would be wrong.
#[derive(Debug, PartialEq, Eq)]
pub struct Stray(pub u8);

impl Stride {
    /// Packets of `each` bytes whose type nibble is `first`'s.
    #[must_use]
    pub fn new(each: usize, first: u8) -> Self {
        Self {
            each,
            first,
            rest: Vec::new(),
        }
    }

    /// Calls `whole` for each packet that the bytes complete; gives how many.
    ///
    /// # Errors
    /// A packet of another type.
    pub fn feed(&mut self, mut bytes: &[u8], mut whole: impl FnMut(&[u8])) -> Result<usize, Stray> {
        let mut count = 0;
        if !self.rest.is_empty() {
            let missing = (self.each - self.rest.len()).min(bytes.len());
            let (head, tail) = bytes.split_at(missing);
            self.rest.extend_from_slice(head);
            bytes = tail;
            if self.rest.len() < self.each {
                return Ok(0);
            }
            let packet = std::mem::take(&mut self.rest);
            self.check(&packet)?;
            whole(&packet);
            self.rest = packet;
            self.rest.clear();
            count += 1;
        }
        let packets = bytes.chunks_exact(self.each);
        self.rest.extend_from_slice(packets.remainder());
        for packet in packets {
            self.check(packet)?;
            whole(packet);
            count += 1;
        }
        Ok(count)
    }

    fn check(&self, packet: &[u8]) -> Result<(), Stray> {
        if packet[0] & 0xF0 == self.first {
            Ok(())
        } else {
            Err(Stray(packet[0]))
        }
    }
}

fn text(value: &str) -> Vec<u8> {
    let length = u16::try_from(value.len()).expect("texts of ours are short");
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(value.as_bytes());
    bytes
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut length = body.len();
    loop {
        let low = (length & 0x7F) as u8;
        length >>= 7;
        if length == 0 {
            bytes.push(low);
            break;
        }
        bytes.push(low | 0x80);
    }
    bytes.extend(body);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publish_is_what_the_standard_says() {
        let mut burst = Burst::new(&["a/b".to_owned(), "c/d".to_owned()], 1);
        burst.next_id = 0x0102;
        let bytes = burst.renew().to_vec();
        let each = publish_bytes(3, 1);
        assert_eq!(bytes.len(), 2 * each);
        // 2 + 3 + 2 + 256 = 263 = 0x87 0x02
        assert_eq!(
            bytes[..10],
            [0x32, 0x87, 0x02, 0, 3, b'a', b'/', b'b', 1, 2]
        );
        assert_eq!(
            bytes[each..each + 10],
            [0x32, 0x87, 0x02, 0, 3, b'c', b'/', b'd', 1, 3]
        );
        assert_eq!(burst.renew()[8..10], [1, 4]);
    }

    #[test]
    fn packet_ids_are_never_zero() {
        let mut burst = Burst::new(&["t".to_owned()], 1);
        burst.next_id = u16::MAX;
        burst.renew();
        assert_eq!(burst.renew()[6..8], [0, 1]);
    }

    #[test]
    fn connect_and_subscribe_are_what_the_standard_says() {
        assert_eq!(
            connect("id", true),
            [
                0x10, 14, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 0, 0, 2, b'i', b'd'
            ]
        );
        assert_eq!(
            subscribe(&["a".into(), "b".into()], 1),
            [0x82, 10, 0, 1, 0, 1, b'a', 1, 0, 1, b'b', 1]
        );
    }

    #[test]
    fn a_stream_is_counted_however_it_is_cut() {
        let topics: Vec<String> = (0..4).map(|n| format!("t/{n}")).collect();
        let bytes = Burst::new(&topics, 1).renew().to_vec();
        for size in [1, 2, 7, 263, 266, 267, 600, 5000] {
            let mut stride = Stride::new(publish_bytes(3, 1), TYPE_PUBLISH);
            let (mut count, mut acks) = (0, Vec::new());
            for piece in bytes.chunks(size) {
                count += stride
                    .feed(piece, |packet| acknowledge(packet, 3, &mut acks))
                    .unwrap();
            }
            assert_eq!(count, 4, "pieces of {size}");
            assert_eq!(
                acks,
                [0x40, 2, 0, 1, 0x40, 2, 0, 2, 0x40, 2, 0, 3, 0x40, 2, 0, 4]
            );
        }
    }

    #[test]
    fn control_a_stray_packet_is_noticed() {
        let mut stride = Stride::new(4, TYPE_PUBACK);
        assert_eq!(stride.feed(&[0x40, 2, 0, 1], |_| ()), Ok(1));
        assert_eq!(stride.feed(&[0xE0, 2, 0, 1], |_| ()), Err(Stray(0xE0)));
    }

    #[test]
    fn a_topic_can_be_renamed_in_place() {
        let mut burst = Burst::new(&["t/0000".into(), "t/0000".into()], 0);
        burst.rename(1, 2, b"0042");
        let each = publish_bytes(6, 0);
        assert_eq!(&burst.renew()[5..11], b"t/0000");
        assert_eq!(&burst.renew()[each + 5..each + 11], b"t/0042");
    }
}
