//! rumqttc against a broker at `127.0.0.1:<first argument>`: both versions, every QoS, retained messages, wills, properties.
//! Prints a line for each thing that held; the first that does not ends it with an error.

use std::time::Duration;

use tokio::time::timeout;

type Failure = Box<dyn std::error::Error>;

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(15);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let port: u16 = std::env::args().nth(1).ok_or("which port?")?.parse()?;
    v3(port).await?;
    println!("held: 3.1.1, every QoS, retained, will");
    v5(port).await?;
    println!("held: 5, every QoS, properties, retained");
    Ok(())
}

async fn v3(port: u16) -> Result<(), Failure> {
    use rumqttc::{AsyncClient, Event, LastWill, MqttOptions, Packet, QoS};
    let options = |id: &str| {
        let mut options = MqttOptions::new(id, "127.0.0.1", port);
        options.set_keep_alive(Duration::from_secs(30));
        options
    };
    let (taker, mut taking) = AsyncClient::new(options("rumqttc-taker"), 100);
    taker.subscribe("rumqttc/v3/#", QoS::ExactlyOnce).await?;
    loop {
        if let Event::Incoming(Packet::SubAck(_)) = timeout(PATIENCE, taking.poll()).await?? {
            break;
        }
    }
    let mut willing = options("rumqttc-giver");
    let will = LastWill::new("rumqttc/v3/will", "gone", QoS::AtLeastOnce, false);
    willing.set_last_will(will);
    let (giver, mut giving) = AsyncClient::new(willing, 100);
    let qualities = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];
    for (number, qos) in qualities.into_iter().enumerate() {
        let topic = format!("rumqttc/v3/{number}");
        giver
            .publish(topic, qos, number == 1, vec![b'x'; 100])
            .await?;
    }
    let driven = tokio::spawn(async move { while giving.poll().await.is_ok() {} });
    let mut found = Vec::new();
    while found.len() < 3 {
        if let Event::Incoming(Packet::Publish(publish)) =
            timeout(PATIENCE, taking.poll()).await??
        {
            found.push((publish.topic, publish.qos as u8, publish.retain));
        }
    }
    found.sort();
    let expected: Vec<_> = (0..3u8)
        .map(|n| (format!("rumqttc/v3/{n}"), n, false))
        .collect();
    same(&found, &expected)?;
    // Its task is thrown away: the connection ends without a word.
    driven.abort();
    drop(giver);
    let will = loop {
        if let Event::Incoming(Packet::Publish(publish)) =
            timeout(PATIENCE, taking.poll()).await??
        {
            break publish;
        }
    };
    same(&will.topic.as_str(), &"rumqttc/v3/will")?;
    let (late, mut coming) = AsyncClient::new(options("rumqttc-late"), 100);
    late.subscribe("rumqttc/v3/1", QoS::AtLeastOnce).await?;
    loop {
        if let Event::Incoming(Packet::Publish(publish)) =
            timeout(PATIENCE, coming.poll()).await??
        {
            return same(&publish.retain, &true);
        }
    }
}

async fn v5(port: u16) -> Result<(), Failure> {
    use rumqttc::v5::mqttbytes::QoS;
    use rumqttc::v5::mqttbytes::v5::{Packet, PublishProperties};
    use rumqttc::v5::{AsyncClient, Event, MqttOptions};
    let options = |id: &str| MqttOptions::new(id, "127.0.0.1", port);
    let (taker, mut taking) = AsyncClient::new(options("rumqttc5-taker"), 100);
    taker.subscribe("rumqttc/v5/#", QoS::ExactlyOnce).await?;
    loop {
        if let Event::Incoming(Packet::SubAck(_)) = timeout(PATIENCE, taking.poll()).await?? {
            break;
        }
    }
    let (giver, mut giving) = AsyncClient::new(options("rumqttc5-giver"), 100);
    let properties = PublishProperties {
        response_topic: Some("rumqttc/answer".into()),
        correlation_data: Some(vec![7].into()),
        user_properties: vec![("b".into(), "1".into()), ("a".into(), "2".into())],
        content_type: Some("text/plain".into()),
        ..PublishProperties::default()
    };
    let qualities = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];
    for (number, qos) in qualities.into_iter().enumerate() {
        let topic = format!("rumqttc/v5/{number}");
        let properties = properties.clone();
        giver
            .publish_with_properties(topic, qos, false, "payload", properties)
            .await?;
    }
    let driven = tokio::spawn(async move { while giving.poll().await.is_ok() {} });
    let mut found = Vec::new();
    while found.len() < 3 {
        if let Event::Incoming(Packet::Publish(publish)) =
            timeout(PATIENCE, taking.poll()).await??
        {
            let got = publish.properties.ok_or("no properties")?;
            same(&got.response_topic, &properties.response_topic)?;
            same(&got.correlation_data, &properties.correlation_data)?;
            same(&got.user_properties, &properties.user_properties)?;
            same(&got.content_type, &properties.content_type)?;
            found.push((publish.topic, publish.qos as u8));
        }
    }
    driven.abort();
    found.sort();
    let expected: Vec<_> = (0..3u8)
        .map(|n| (format!("rumqttc/v5/{n}").into(), n))
        .collect();
    same(&found, &expected)
}

fn same<T: PartialEq + std::fmt::Debug>(found: &T, expected: &T) -> Result<(), Failure> {
    if found == expected {
        Ok(())
    } else {
        Err(format!("found {found:?}, expected {expected:?}").into())
    }
}
