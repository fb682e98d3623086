//! Backup and restore, as an operator does them and as the clients of the old epoch see them.

use cluster_client::{ClusterClient, LogIndex, ProposeError, Status, StreamError, Ticket, Unresolved};
use cluster_server::Phase;
use futures_util::StreamExt;
use tokio::time::timeout;
use voter_mesh::configuration::Role;
use voter_mesh::ids::{Epoch, Seat};

use super::command_line::{Ended, run};
use super::fleet::Fleet;
use crate::harness::{PATIENCE, eventually};

async fn backup(fleet: &Fleet, seat: usize, file: &str) -> serde_json::Value {
    run(&["backup", "--endpoint", &fleet.url(seat), "--json", file]).await.json()
}

async fn restore(file: &str, data_dir: &str, node: &str) -> Ended {
    run(&["restore", file, "--data-dir", data_dir, "--node", node, "--json"]).await
}

#[tokio::test]
async fn a_destroyed_cluster_comes_back_from_its_backup_and_the_clients_that_were_there_go_on_knowingly() {
    let mut fleet = Fleet::start("log").await;
    let file = fleet.root.path().join("backup").display().to_string();
    let client = ClusterClient::builder().endpoints(fleet.urls()).deadline(PATIENCE).raw().connect().await.unwrap();
    let mut stream = client.committed_from(LogIndex::FIRST);
    let kept = client.propose(&"kept".into()).await.unwrap().index;
    // Any server gives one, and it holds what was acknowledged through another one a moment ago.
    let backup = backup(&fleet, 1, &file).await;
    assert!(backup["index"].as_u64().unwrap() >= kept.0 && backup["epoch"] == 1, "{backup}");
    assert_eq!(backup["bytes"].as_u64().unwrap(), std::fs::metadata(&file).unwrap().len());
    let lost = client.propose(&"lost".into()).await.unwrap();
    let ticket: Ticket = client.reserve().await.unwrap();
    for expected in [kept, lost.index] {
        let entry = timeout(PATIENCE, stream.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(entry.index, expected);
    }
    // One command is in flight when everything goes.
    let entry = match &*client.status().borrow() {
        Status::Live { server, epoch, .. } => {
            assert_eq!(*epoch, Epoch::FIRST);
            usize::from(server.seat().0)
        }
        other => panic!("{other:?}"),
    };
    let before = fleet.status(entry).await.unwrap().counters["proposals"];
    (1..=3).filter(|seat| *seat != entry).for_each(|seat| fleet.freeze(seat));
    let flying = tokio::spawn({
        let client = client.clone();
        async move { client.propose(&"flying".into()).await }
    });
    eventually("the command at its server", || async { (fleet.status(entry).await?.counters["proposals"] > before).then_some(()) })
        .await;
    for seat in 1..=3 {
        fleet.kill(seat).await;
        if seat != 3 {
            fleet.wipe(seat);
        }
    }

    let data_dir = fleet.data_dir(1).display().to_string();
    let restored = restore(&file, &data_dir, "1").await.json();
    assert_eq!(
        (&restored["epoch"], &restored["id"], &restored["vacant"]),
        (&2.into(), &"1.2".into(), &[2, 3].into()),
        "{restored}"
    );
    let again = restore(&file, &data_dir, "1").await;
    assert!(again.code == 1 && again.stderr.contains("not empty"), "{again:?}");
    fleet.launch(1).await;

    match timeout(PATIENCE, flying).await.expect("it is answered").unwrap() {
        Err(ProposeError::Unknown { reason: Unresolved::Epoch, .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(timeout(PATIENCE, stream.next()).await.unwrap(), Some(Err(StreamError::Epoch)));
    let mut status = client.status();
    let live = status.wait_for(|status| matches!(status, Status::Live { epoch: Epoch(2), .. }));
    drop(timeout(PATIENCE, live).await.expect("live in the new epoch").unwrap());
    // No ticket of the old epoch means anything in the new one, also not by accident.
    let after = client.propose(&"after".into()).await.unwrap();
    assert!(after.index > lost.index && after.term > lost.term, "{after:?} after {lost:?}");
    assert_ne!(client.reserve().await.unwrap().session, ticket.session);
    assert_eq!(client.propose_as(&ticket, &"late".into()).await, Err(ProposeError::ForeignTicket));
    assert_eq!(client.outcome(&ticket).await, Err(ProposeError::SessionExpired));

    // A server of the old epoch is let in by nobody. Empty ones are, and get their votes back.
    fleet.launch(3).await;
    eventually("the old server refused", || async {
        let refused = fleet.status(1).await?.counters.get("mesh_refused_epoch").copied();
        refused.filter(|count| *count > 0)
    })
    .await;
    assert_ne!(fleet.status(3).await.unwrap().phase, Phase::Leading);
    fleet.kill(3).await;
    fleet.wipe(3);
    fleet.launch(2).await;
    fleet.launch(3).await;
    for seat in ["2", "3"] {
        eventually("promoted", || async {
            let promoted = run(&["member", "promote", seat, "--endpoint", &fleet.url(1)]).await;
            assert!(promoted.code == 0 || promoted.stderr.contains("yet"), "{promoted:?}");
            (promoted.code == 0).then_some(())
        })
        .await;
    }
    fleet.identical().await;
    let configuration = fleet.status(1).await.unwrap().configuration;
    for seat in 1..=3 {
        let member = configuration.seats[&Seat(seat)].member.clone().unwrap();
        assert_eq!((member.role, member.id.life()), (Role::Voter, 2), "no life is lived twice");
    }
    // The restored server is dispensable now.
    fleet.kill(1).await;
    client.propose(&"without the first".into()).await.unwrap();
    let mut stream = client.committed_from(after.index);
    for expected in ["after", "without the first"] {
        let entry = timeout(PATIENCE, stream.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(entry.payload, expected);
    }
    // What was before the backup is in the state, and not in the log.
    let mut old = client.committed_from(LogIndex::FIRST);
    match timeout(PATIENCE, old.next()).await.unwrap() {
        Some(Err(StreamError::Trimmed { first })) => assert!(first > lost.index, "{first}"),
        other => panic!("{other:?}"),
    }
}
