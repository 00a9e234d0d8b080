//! Devices hear of the other server by signed notices: once, and again when it moves.

use holdfast_protocol::notice::{Body, Notice};

use super::kit::*;
use crate::alternates::Told;
use crate::sync::Client;

async fn sync(gateway: &Served, cloud: &Served) {
    let client = https_client(gateway, cloud.api).await;
    Client::new(&gateway.cps, client).once().await.unwrap();
}

/// The one notice that is due at a server, verified by its key.
async fn due(at: &Served, told: &mut Told) -> Option<Notice> {
    let all = at.cps.alternates().due(told).await.unwrap();
    assert!(all.len() <= 1, "{all:?}");
    let one = all.first()?;
    told.note(one);
    let keys = [at.cps.keys().record().public()];
    let it = &one.notice;
    Some(Notice::verify(&it.notice, &keys, &it.site, it.device).unwrap())
}

fn names(notice: &Notice) -> (String, Vec<String>) {
    match &notice.body {
        Body::Alternate(server) => (server.server.to_string(), server.mqtt.clone()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn each_server_tells_of_the_other_and_again_when_it_moves() {
    let cloud = cloud().await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    let (factory, at) = (Factory::new(), site("north"));
    let (_device, voucher) = factory.device_for(&cloud.cps, "a");
    let accepted = cloud.cps.vouchers().accept(&voucher, Some(at)).await;
    accepted.unwrap();
    let reached = |port: u16| crate::Advertise {
        mqtt: vec![format!("10.0.0.1:{port}")],
        ..crate::Advertise::default()
    };
    cloud.cps.set_advertise(reached(1));
    gateway.cps.set_advertise(reached(2));
    sync(&gateway, &cloud).await;
    let (mut at_cloud, mut at_gateway) = (Told::default(), Told::default());
    let first = due(&gateway, &mut at_gateway).await.unwrap();
    assert_eq!(names(&first), ("cloud".into(), vec!["10.0.0.1:1".into()]));
    let other = due(&cloud, &mut at_cloud).await.unwrap();
    assert_eq!(names(&other), ("gw1".into(), vec!["10.0.0.1:2".into()]));
    for (server, told) in [(&gateway, &mut at_gateway), (&cloud, &mut at_cloud)] {
        assert_eq!(due(server, told).await, None, "told already");
    }
    // A publisher that starts anew has the same bytes again.
    let again = due(&gateway, &mut Told::default()).await.unwrap();
    assert_eq!(again, first);

    gateway.cps.set_advertise(reached(3));
    sync(&gateway, &cloud).await;
    let moved = due(&cloud, &mut at_cloud).await.unwrap();
    assert_eq!(names(&moved), ("gw1".into(), vec!["10.0.0.1:3".into()]));
    assert!(moved.stamp > other.stamp, "{moved:?}");
    assert_eq!(due(&gateway, &mut at_gateway).await, None);
}
