//! Backups as a server gives them, and what becomes of files that are no good.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use cluster_client::{ClusterClient, RequestJournal};
use cluster_server::cluster::voter_dir;
use cluster_server::disk::{DiskError, SnapshotFile};
use cluster_server::{ServerLimits, tools};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use voter_mesh::ids::{Epoch, Seat};
use voter_mesh::machine::kv::{Kv, KvCommand};
use voter_mesh::machine::{kv, log};

use crate::harness::{PATIENCE, eventually};
use crate::here::{client_of, shutdown, started, voters};

/// Asks for a backup; the answer is not read yet.
async fn ask(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // Of an old client: the answer ends with the connection.
    stream.write_all(b"GET /backup HTTP/1.0\r\n\r\n").await.unwrap();
    stream
}

/// The status and the body of an answer; a body that was broken off is as long as it is.
async fn answer(mut stream: TcpStream) -> (u16, Vec<u8>) {
    let mut bytes = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("an answer ends");
    let head = bytes.windows(4).position(|end| end == b"\r\n\r\n").expect("an answer has a head") + 4;
    let status = std::str::from_utf8(&bytes[9..12]).unwrap().parse().unwrap();
    (status, bytes.split_off(head))
}

fn check(path: &Path) -> Result<SnapshotFile, DiskError> {
    let file = SnapshotFile::open(path)?;
    file.check(&mut |_| ()).map(|()| file)
}

#[tokio::test]
async fn a_backup_that_nobody_takes_is_broken_off_and_disturbs_only_other_backups() {
    let directory = tempfile::tempdir().unwrap();
    let limits = ServerLimits { backup_stall_ms: 500, ..ServerLimits::default() };
    let cluster = started(voters(1, directory.path()).machine(kv::factory()).limits(limits)).await;
    let address = cluster.relay_addrs()[0];
    let client = client_of(&cluster.urls()).state(Kv::default()).connect().await.unwrap();
    // More than sockets hold, and nothing that compresses.
    let mut seed = 1_u64;
    let mut noise = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 56) as u8
    };
    for key in 0..12_u8 {
        let value = (0..700 << 10).map(|_| noise()).collect();
        client.propose(&KvCommand::Put { key: vec![key], value }).await.unwrap();
    }
    let mut stalled = ask(address).await;
    let mut head = [0; 64];
    stalled.read_exact(&mut head).await.unwrap();
    assert_eq!(answer(ask(address).await).await.0, 409, "one at a time");
    let put = KvCommand::Put { key: b"meanwhile".to_vec(), value: b"written".to_vec() };
    let index = client.propose(&put).await.unwrap().index;
    let (status, body) = eventually("the stalled one is broken off", || async {
        let answer = answer(ask(address).await).await;
        (answer.0 != 409).then_some(answer)
    })
    .await;
    assert_eq!(status, 200);
    let path = directory.path().join("backup");
    std::fs::write(&path, &body).unwrap();
    let meta = check(&path).unwrap().meta().clone();
    assert!(meta.tail.last >= index);
    let served = cluster.status_with_hashes(Seat(1)).await.unwrap();
    assert_eq!(meta.state_hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), served.state_hash.unwrap());
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, stalled.read_to_end(&mut rest)).await.expect("its connection has ended");
    assert!(rest.len() < body.len(), "it was cut off");
    // Whoever goes in the middle leaves nothing behind either.
    let mut gone = ask(address).await;
    gone.read_exact(&mut head).await.unwrap();
    drop(gone);
    eventually("the next one", || async { (answer(ask(address).await).await.0 == 200).then_some(()) }).await;
    shutdown(cluster).await;
}

#[tokio::test]
async fn sessions_of_a_backup_end_by_themselves_and_a_journal_of_the_old_epoch_begins_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("backup");
    let cluster = started(voters(1, &directory.path().join("old"))).await;
    let journal = directory.path().join("journal");
    let builder = || client_of(&cluster.urls()).journal(RequestJournal::file(&journal).unwrap());
    let client: ClusterClient<_> = builder().raw().connect().await.unwrap();
    let before = client.propose(&"before".into()).await.unwrap();
    let ticket = client.reserve().await.unwrap();
    client.close().await;
    let (status, body) = answer(ask(cluster.relay_addrs()[0]).await).await;
    assert_eq!(status, 200);
    std::fs::write(&path, body).unwrap();
    shutdown(cluster).await;

    let data = directory.path().join("new");
    let restored = tools::restore(&check(&path).unwrap(), &voter_dir(&data, Seat(1)), Seat(1), None).unwrap();
    assert_eq!((restored.meta.identity.epoch, restored.id.life()), (Epoch(2), 2));
    let cluster = started(voters(1, &data).session_ttl(Duration::from_millis(300))).await;
    assert_eq!(cluster.status(Seat(1)).await.unwrap().epoch, Epoch(2));
    let client = client_of(&cluster.urls()).journal(RequestJournal::file(&journal).unwrap()).raw().connect().await.unwrap();
    eventually("the old session has ended", || async { (cluster.status(Seat(1)).await.unwrap().sessions == 0).then_some(()) })
        .await;
    let after = client.propose(&"after".into()).await.unwrap();
    assert!(after.index > before.index && !after.repeat);
    let next = client.reserve().await.unwrap();
    assert!(next.session > ticket.session, "a session of its own: {next} after {ticket}");
    client.close().await;
    shutdown(cluster).await;
}

#[tokio::test]
async fn no_flipped_byte_and_no_cut_of_a_backup_passes_and_a_refused_one_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = started(voters(1, &directory.path().join("data")).machine(log::factory())).await;
    let client = client_of(&cluster.urls()).raw().connect().await.unwrap();
    client.propose(&"something".into()).await.unwrap();
    let (_, whole) = answer(ask(cluster.relay_addrs()[0]).await).await;
    shutdown(cluster).await;
    let path = directory.path().join("backup");
    let passes = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        check(&path).is_ok()
    };
    assert!(passes(&whole));
    for cut in 0..whole.len() {
        assert!(!passes(&whole[..cut]), "cut at {cut}");
    }
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        assert!(!passes(&flipped), "byte {at}");
    }
    assert!(passes(&whole));
    let target = directory.path().join("target");
    let refused = tools::restore(&check(&path).unwrap(), &target, Seat(9), None);
    assert!(matches!(refused, Err(tools::RestoreError::Epoch(_))), "{refused:?}");
    assert!(!target.exists());
    std::fs::create_dir(&target).unwrap();
    std::fs::write(target.join("precious"), "").unwrap();
    let refused = tools::restore(&check(&path).unwrap(), &target, Seat(1), None);
    assert!(matches!(refused, Err(tools::RestoreError::NotEmpty { .. })), "{refused:?}");
    assert!(target.join("precious").exists());
}
