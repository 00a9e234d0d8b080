//! CONNECT and CONNACK, statement by statement.

use std::time::Duration;

use holdfast_broker::Config;

use crate::common::{Hello, Server, expiry, packet, publish, text};
use crate::kit::{VERSIONS, answer, client, connect, connect_with, ends, hello, refuses, server};

#[tokio::test]
async fn mqtt5_3_1_2_1_another_protocol_name_gets_no_session() {
    let server = server().await;
    let rest = [0, 0, 1, b'x'];
    let cases: Vec<(&str, Vec<u8>)> = [
        &b""[..],
        b"MQTX",
        b"mqtt",
        b"MQTTT",
        b"MQT",
        b"MQIsdp",
        b"HTTP",
        b"MQTT\0",
    ]
    .iter()
    .map(|name| ("a protocol name", connect(name, 5, 2, &rest)))
    .collect();
    refuses(&server, &cases).await;
}

#[tokio::test]
async fn mqtt5_3_1_2_2_another_version_is_told_so_and_closed() {
    let server = server().await;
    for level in [0, 1, 2, 3, 6, 7, 128, 255] {
        let bytes = connect(b"MQTT", level, 2, &[0, 0, 1, b'x']);
        // 3.1.1 asks for this answer, 5 leaves it open; `answer` sees that it closes.
        assert_eq!(answer(&server, &bytes).await, Some(vec![0, 1]), "{level}");
    }
}

#[tokio::test]
async fn mqtt5_3_1_2_3_and_11_to_15_connect_flags_that_contradict_get_no_session() {
    let server = server().await;
    let mut cases = Vec::new();
    for level in [4, 5] {
        let properties: &[u8] = if level == 5 { &[0] } else { &[] };
        for (what, flags) in [
            ("reserved flag", 0x03),
            ("will QoS without a will", 0x0A),
            ("will QoS 2 without a will", 0x12),
            ("will retain without a will", 0x22),
        ] {
            let rest = [properties, &[0, 1, b'x']].concat();
            cases.push((what, connect(b"MQTT", level, flags, &rest)));
        }
        let will = [properties, &[0, 1, b'x'], properties, &text("w"), &[0, 0]].concat();
        cases.push(("will QoS 3", connect(b"MQTT", level, 0x1E, &will)));
    }
    refuses(&server, &cases).await;
}

#[tokio::test]
async fn mqtt311_3_1_2_22_a_password_without_a_user_name_gets_no_session() {
    let server = server().await;
    let rest = [&text("x")[..], &text("secret")].concat();
    refuses(
        &server,
        &[("password alone", connect(b"MQTT", 4, 0x42, &rest))],
    )
    .await;
    // MQTT 5 allows it (3.1.2.9).
    let rest = [&[0][..], &text("x"), &text("secret")].concat();
    let body = answer(&server, &connect(b"MQTT", 5, 0x42, &rest)).await;
    assert_eq!(body.unwrap()[1], 0);
}

#[tokio::test]
async fn mqtt5_3_1_2_16_to_19_fields_and_flags_must_agree() {
    let server = server().await;
    let mut cases = Vec::new();
    for level in [4, 5] {
        let p: &[u8] = if level == 5 { &[0] } else { &[] };
        let id = [p, &[0, 1, b'x']].concat();
        for (what, flags, rest) in [
            ("user flag, no user", 0x82, vec![]),
            ("password flag, no password", 0xC2, text("user")),
            ("user without its flag", 0x02, text("user")),
            (
                "password without its flag",
                0x82,
                [text("u"), text("p")].concat(),
            ),
            ("will flag, no will", 0x06, vec![]),
            ("a will without payload", 0x06, [p, &text("w")].concat()),
            ("a will without topic", 0x06, [p, &[0, 0, 0, 0]].concat()),
            (
                "a will without its flag",
                0x02,
                [p, &text("w"), &text("m")].concat(),
            ),
            ("bytes behind", 0x02, vec![7]),
            ("a cut user", 0x82, vec![0, 9, b'u']),
        ] {
            cases.push((
                what,
                connect(b"MQTT", level, flags, &[id.clone(), rest].concat()),
            ));
        }
        cases.push(("no client id", connect(b"MQTT", level, 2, p)));
        let cut = [p, &[0, 9, b'x']].concat();
        cases.push(("a short client id", connect(b"MQTT", level, 2, &cut)));
        let begun = [0, 4, b'M', b'Q', b'T', b'T', level, 2];
        cases.push(("no keep-alive", packet(0x10, &begun)));
        cases.push(("no flags", packet(0x10, &begun[..7])));
    }
    cases.push(("nothing at all", packet(0x10, &[])));
    refuses(&server, &cases).await;
}

#[tokio::test]
async fn mqtt5_3_1_3_1_the_fields_of_connect_come_in_their_order() {
    let server = server().await;
    let mut taker = server.v5("taker").await;
    taker.subscribe("w", 1).await;
    for v5 in VERSIONS {
        let mut greeting = Hello::v5("all-fields");
        greeting.v5 = v5;
        greeting.will = Some((0x08, Vec::new(), "w".into(), b"the will".to_vec()));
        greeting.user = Some("user".into());
        for (password, code) in [("right", 0), ("wrong", if v5 { 0x86 } else { 4 })] {
            greeting.password = Some(password.into());
            let mut wire = server.raw().await;
            wire.send(&greeting.bytes()).await;
            wire.connack(code).await;
        }
        let got = taker.receive().await;
        assert_eq!((got.text(), got.qos()), ("the will", 1));
        // Empty ones are there all the same.
        greeting.will.as_mut().unwrap().3.clear();
        greeting.user = Some(String::new());
        greeting.password = Some(Vec::new());
        drop(hello(&server, &greeting).await);
        assert_eq!(taker.receive().await.text(), "");
        taker.nothing().await;
    }
}

#[tokio::test]
async fn mqtt5_1_5_4_1_and_2_ill_formed_text_in_connect_gets_no_session() {
    let server = server().await;
    let mut cases = Vec::new();
    for (what, bad) in [
        ("NUL", &b"a\0b"[..]),
        ("a surrogate", b"\xED\xA0\x80"),
        ("an overlong slash", b"\xC0\xAF"),
        ("a lone continuation", b"\x80"),
        ("a cut sequence", b"\xE2\x82"),
        ("beyond Unicode", b"\xF4\x90\x80\x80"),
    ] {
        let bad = [&u16::try_from(bad.len()).unwrap().to_be_bytes()[..], bad].concat();
        for (level, properties) in [(4u8, &[][..]), (5, &[0u8][..])] {
            let id = [properties, &bad].concat();
            cases.push((what, connect(b"MQTT", level, 2, &id)));
            let user = [properties, &text("x"), &bad].concat();
            cases.push((what, connect(b"MQTT", level, 0x82, &user)));
            let will = [properties, &text("x"), properties, &bad, &[0, 0]].concat();
            cases.push((what, connect(b"MQTT", level, 0x06, &will)));
        }
    }
    refuses(&server, &cases).await;
}

#[tokio::test]
async fn mqtt5_3_1_2_11_properties_of_connect_twice_or_out_of_range_get_no_session() {
    let server = server().await;
    let single: [(&str, &[u8]); 7] = [
        ("session expiry", &[0x11, 0, 0, 0, 1]),
        ("receive maximum", &[0x21, 0, 9]),
        ("maximum packet size", &[0x27, 0, 1, 0, 0]),
        ("topic alias maximum", &[0x22, 0, 1]),
        ("request response information", &[0x19, 1]),
        ("request problem information", &[0x17, 1]),
        ("authentication method", &[0x15, 0, 1, b'm']),
    ];
    let mut cases: Vec<(&str, Vec<u8>)> = single
        .iter()
        .map(|(what, one)| (*what, connect_with(&one.repeat(2))))
        .collect();
    let wrong: [(&str, &[u8]); 11] = [
        ("receive maximum 0", &[0x21, 0, 0]),
        ("maximum packet size 0", &[0x27, 0, 0, 0, 0]),
        ("request response information 2", &[0x19, 2]),
        ("request problem information 2", &[0x17, 2]),
        ("authentication data without a method", &[0x16, 0, 1, 7]),
        ("a property of PUBLISH", &[0x23, 0, 1]),
        ("a property of CONNACK", &[0x24, 1]),
        ("a will's property", &[0x18, 0, 0, 0, 1]),
        ("an unknown property", &[0x7F, 1]),
        ("a cut property", &[0x11, 0, 0]),
        ("a user property without value", &[0x26, 0, 1, b'n']),
    ];
    cases.extend(wrong.iter().map(|(what, one)| (*what, connect_with(one))));
    cases.push((
        "properties longer than the packet",
        connect(b"MQTT", 5, 2, &[100, 0, 1, b'x']),
    ));
    cases.push((
        "a property length longer than needed",
        connect(b"MQTT", 5, 2, &[0x80, 0, 0, 1, b'x']),
    ));
    refuses(&server, &cases).await;
    // The control: each of the first six once is fine.
    for (what, one) in &single[..6] {
        let body = answer(&server, &connect_with(one)).await;
        assert_eq!(body.unwrap()[1], 0, "{what}");
    }
}

#[tokio::test]
async fn mqtt5_3_1_3_2_properties_of_a_will_twice_or_out_of_place_get_no_session() {
    let server = server().await;
    let single: [&[u8]; 6] = [
        &[0x18, 0, 0, 0, 1],
        &[0x01, 1],
        &[0x02, 0, 0, 0, 9],
        &[0x03, 0, 1, b't'],
        &[0x08, 0, 1, b'r'],
        &[0x09, 0, 1, 7],
    ];
    let bytes = |properties: &[u8]| {
        let mut hello = Hello::v5("x");
        hello.will = Some((0, properties.to_vec(), "w".into(), b"gone".to_vec()));
        hello.bytes()
    };
    let mut cases: Vec<(&str, Vec<u8>)> = single
        .iter()
        .map(|one| ("twice", bytes(&one.repeat(2))))
        .collect();
    for (what, one) in [
        ("format 2", &[0x01u8, 2][..]),
        ("an alias", &[0x23, 0, 1]),
        ("a subscription id", &[0x0B, 1]),
        ("a session expiry", &[0x11, 0, 0, 0, 1]),
        ("a wildcard in the response topic", &[0x08, 0, 1, b'#']),
    ] {
        cases.push((what, bytes(one)));
    }
    refuses(&server, &cases).await;
    for one in single {
        let body = answer(&server, &bytes(one)).await;
        assert_eq!(body.unwrap()[1], 0, "{one:?}");
    }
}

#[tokio::test]
async fn mqtt5_3_1_3_5_client_ids_of_1_to_23_letters_and_digits_are_taken_and_longer_ones() {
    let server = server().await;
    let all = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    for id in ["a", &all[..23], &all[23..46], all, "a b/c#+ü€😀"] {
        for v5 in VERSIONS {
            client(&server, v5, id).await.nothing().await;
        }
    }
}

#[tokio::test]
async fn mqtt5_3_1_3_6_and_7_an_empty_client_id_gets_a_name_of_its_own_each_time() {
    let server = server().await;
    let mut names = Vec::new();
    let mut wires = Vec::new();
    for _ in 0..3 {
        let mut wire = server.raw().await;
        wire.send(&Hello::v5("").bytes()).await;
        let (_, body) = wire.packet().await.unwrap();
        let at = body.iter().position(|byte| *byte == 0x12).unwrap();
        let length = usize::from(body[at + 2]);
        names.push(body[at + 3..at + 3 + length].to_vec());
        wires.push(wire);
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 3, "[MQTT-3.2.2-16]");
    for wire in &mut wires {
        wire.nothing().await;
    }
    // 3.1.1: a clean session may leave it out [MQTT-3.1.3-7], another may not [MQTT-3.1.3-8]. Each is
    // somebody else [MQTT-3.1.3-6].
    let mut nameless = client(&server, false, "").await;
    client(&server, false, "").await.nothing().await;
    nameless.nothing().await;
    let mut hello = Hello::v3("");
    hello.clean = false;
    assert_eq!(answer(&server, &hello.bytes()).await, Some(vec![0, 2]));
}

#[tokio::test]
async fn mqtt5_3_1_3_8_where_none_are_given_an_empty_client_id_is_refused() {
    let config = Config {
        assign_client_ids: false,
        ..Config::default()
    };
    let server = Server::start(config).await;
    let body = answer(&server, &Hello::v5("").bytes()).await.unwrap();
    assert_eq!(body[1], 0x85);
    let body = answer(&server, &Hello::v3("").bytes()).await.unwrap();
    assert_eq!(body[1], 2);
}

#[tokio::test]
async fn mqtt5_3_1_0_2_a_second_connect_is_a_protocol_error() {
    let server = server().await;
    assert_eq!(
        ends(&server, true, &Hello::v5("ends").bytes()).await,
        Some(0x82)
    );
    assert_eq!(ends(&server, false, &Hello::v3("ends").bytes()).await, None);
}

#[tokio::test]
async fn mqtt5_3_1_4_6_what_follows_a_refused_connect_is_not_processed() {
    let server = server().await;
    let mut taker = server.v5("taker").await;
    taker.subscribe("#", 0).await;
    server.rights.banned.lock().unwrap().insert("banned".into());
    for v5 in VERSIONS {
        let mut hello = Hello::v5("banned");
        hello.v5 = v5;
        let bytes = [hello.bytes(), publish(v5, 0, "x", 0, &[], b"smuggled")].concat();
        assert_ne!(answer(&server, &bytes).await.unwrap()[1], 0);
    }
    taker.nothing().await;
}

#[tokio::test]
async fn mqtt5_3_1_4_a_client_need_not_wait_for_its_connack() {
    let server = server().await;
    for v5 in VERSIONS {
        let mut hello = Hello::v5("eager");
        hello.v5 = v5;
        let properties: &[u8] = if v5 { &[0] } else { &[] };
        let subscribe = [&[0, 1][..], properties, &text("x"), &[0]].concat();
        let bytes = [
            hello.bytes(),
            packet(0x82, &subscribe),
            publish(v5, 0, "x", 0, &[], b"early"),
        ]
        .concat();
        // In one piece, and byte by byte.
        for whole in [true, false] {
            let mut wire = server.raw().await;
            wire.v5 = v5;
            if whole {
                wire.send(&bytes).await;
            } else {
                for byte in &bytes {
                    wire.send(&[*byte]).await;
                }
            }
            wire.connack(0).await;
            assert_eq!(wire.packet().await.unwrap().0, 0x90);
            assert_eq!(wire.receive().await.text(), "early");
        }
    }
}

#[tokio::test]
async fn mqtt5_3_2_2_the_connack_tells_every_limit_that_holds() {
    let mut config = Config {
        keep_alive_max: 30,
        session_expiry_max: 100,
        ..Config::default()
    };
    config.limits.receive_maximum = 7;
    config.limits.packet_bytes = 5000;
    config.limits.topic_aliases = 3;
    let server = Server::start(config).await;
    let mut hello = Hello::v5("x");
    hello.properties = expiry(1000);
    let body = answer(&server, &hello.bytes()).await.unwrap();
    let told: [(&str, &[u8]); 5] = [
        ("session expiry", &[0x11, 0, 0, 0, 100]),
        ("receive maximum", &[0x21, 0, 7]),
        ("maximum packet size", &[0x27, 0, 0, 0x13, 0x88]),
        ("topic alias maximum", &[0x22, 0, 3]),
        ("[MQTT-3.2.2-21]", &[0x13, 0, 30]),
    ];
    for (what, property) in told {
        let found = body[3..].windows(property.len());
        assert!(
            found.into_iter().any(|part| part == property),
            "{what}: {body:?}"
        );
    }
    // And nothing else: no authentication method among others [MQTT-4.12.0-6].
    let all: usize = told.iter().map(|(_, property)| property.len()).sum();
    assert_eq!((body[..2].to_vec(), body[2..].len()), (vec![0, 0], 1 + all));
    // 3.1.1 has two bytes and no more.
    let body = answer(&server, &Hello::v3("y").bytes()).await.unwrap();
    assert_eq!(body.len(), 2);
}

#[tokio::test]
async fn mqtt5_3_2_2_15_a_connack_is_never_larger_than_the_client_takes() {
    let server = server().await;
    let mut hello = Hello::v5("x");
    hello.properties = vec![0x27, 0, 0, 0, 12];
    let mut wire = server.raw().await;
    wire.send(&hello.bytes()).await;
    if let Some((_, body)) = wire.packet().await {
        assert!(body.len() + 2 <= 12, "{body:?}");
    }
}

#[tokio::test]
async fn mqtt5_4_12_0_1_an_unknown_authentication_method_is_refused_with_its_code() {
    let server = server().await;
    let body = answer(
        &server,
        &connect_with(&[0x15, 0, 5, b'S', b'C', b'R', b'A', b'M']),
    )
    .await
    .unwrap();
    assert_eq!(body[1], 0x8C);
    // And nobody may send AUTH without one [MQTT-3.1.2-30].
    assert_eq!(ends(&server, true, &[0xF0, 0]).await, Some(0x82));
    assert_eq!(ends(&server, true, &[0xF1, 0]).await, Some(0x81));
}

#[tokio::test]
async fn mqtt5_3_1_2_22_bytes_that_make_no_packet_do_not_keep_a_connection_alive() {
    let server = server().await;
    for v5 in VERSIONS {
        let mut greeting = Hello::v5("slow");
        greeting.v5 = v5;
        greeting.keep_alive = 1;
        let mut wire = hello(&server, &greeting).await;
        let packet = publish(v5, 0, "x", 0, &[], &[b'p'; 100]);
        let begun = tokio::time::Instant::now();
        let mut ended = false;
        for byte in packet.iter().take(40) {
            use tokio::io::AsyncWriteExt as _;
            if wire.stream.write_all(&[*byte]).await.is_err() {
                ended = true;
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let ended = ended || wire.closed().await.is_none_or(|code| code == 0x8D);
        assert!(ended && begun.elapsed() < Duration::from_secs(4), "{v5}");
    }
}

#[tokio::test]
async fn mqtt5_3_1_2_10_a_keep_alive_of_0_and_pings_in_time_keep_a_connection() {
    let server = server().await;
    let mut forever = Hello::v3("forever");
    forever.keep_alive = 0;
    let mut quiet = hello(&server, &forever).await;
    let mut short = Hello::v5("short");
    short.keep_alive = 1;
    let mut pinging = hello(&server, &short).await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(600)).await;
        // [MQTT-3.12.4-1]
        pinging.nothing().await;
    }
    quiet.nothing().await;
}

#[tokio::test]
async fn mqtt5_3_2_2_21_the_servers_keep_alive_is_the_one_that_counts() {
    let config = Config {
        keep_alive_max: 1,
        ..Config::default()
    };
    let server = Server::start(config).await;
    for asked in [0, 60] {
        let mut greeting = Hello::v5("told");
        greeting.keep_alive = asked;
        let mut wire = server.raw().await;
        wire.send(&greeting.bytes()).await;
        let (_, body) = wire.packet().await.unwrap();
        assert!(body[3..].windows(3).any(|part| part == [0x13, 0, 1]));
        let begun = tokio::time::Instant::now();
        assert_eq!(wire.closed().await, Some(0x8D));
        assert!(begun.elapsed() < Duration::from_secs(4));
    }
    // 3.1.1 cannot be told: what it asked for holds.
    let mut old = Hello::v3("old");
    old.keep_alive = 60;
    let mut wire = hello(&server, &old).await;
    tokio::time::sleep(Duration::from_millis(2000)).await;
    wire.nothing().await;
}
