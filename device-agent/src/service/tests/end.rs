//! The end of use, as ordered.

use super::*;

fn end(seq: u64) -> Notice {
    Notice {
        body: Body::ServiceEnd { rank: seq },
        ..notice(seq, "none")
    }
}

/// The end of use: killed at any store, it ends right; then it is reported, and nothing runs.
#[tokio::test]
async fn an_end_of_use_is_carried_out_and_reported_whatever_is_killed() {
    let mut kills = 0;
    for n in 0..4 {
        for kept in [false, true] {
            let mut world = World::new();
            let mut room = world.start();
            let civil = world.notice(1, "civil");
            room.desk.notices.send(civil.clone()).await.unwrap();
            room.reports("civil", "runs").await;
            let told = |world: &World, most: usize| {
                let asked = world.plant().asked.clone();
                asked.iter().filter(|word| **word == "report").count() >= most
            };
            while !told(&world, 1) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            room.end().await;
            *world.kill.lock().unwrap() = Some((n, kept));
            let over = end(2).sign(&world.record_key);
            let mut room = world.start();
            room.desk.notices.send(over.clone()).await.unwrap();
            let rests = async {
                room.reports("civil", "ended").await;
                while !told(&world, 2) || world.plant().asked.last() != Some(&"poll") {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::select! {
                () = world.dead.cancelled() => kills += 1,
                () = rests => {}
            }
            room.task.abort();
            let _ = room.task.await;
            *world.kill.lock().unwrap() = None;
            let mut room = world.start();
            let runs = room.runs.clone();
            // Retained: it comes again.
            room.desk.notices.send(over).await.unwrap();
            let report = room.reports("civil", "ended").await;
            assert_eq!(
                (&report["runs"], &report["in_use"]),
                (&Value::Null, &Value::Bool(false))
            );
            let reported = async {
                while !told(&world, 2) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            timeout(PATIENCE, reported)
                .await
                .expect("the register hears of it");
            assert!(runs.borrow().is_none());
            // What was ordered before does not come back.
            room.desk.notices.send(civil).await.unwrap();
            while room.board.now().notices_refused < 1 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            room.end().await;
        }
    }
    assert!(kills == 4, "{kills} kills hit");
}
