//! A command's way: the same bytes on every server and every client, whoever comes and goes.

use bytes::Bytes;
use cluster_client::LogIndex;
use futures_util::future::join_all;

use crate::here::{applied, client_of, committed_to, followers, identical, raw, shutdown, started, take, url, voters};

/// Payloads of every kind, over several runs and frames.
fn payloads(who: &str) -> Vec<Bytes> {
    let every_byte: Vec<u8> = (0..=255).collect();
    let large: Vec<u8> = (0..200_000_u32).map(|number| (number ^ (number >> 7)) as u8).collect();
    vec![Bytes::new(), format!("from {who}").into_bytes().into(), every_byte.into(), large.into()]
}

async fn proposed_anywhere(count: u16) {
    let directory = tempfile::tempdir().unwrap();
    let cluster = started(voters(count, directory.path())).await;
    let clients = join_all(cluster.urls().iter().map(|url| raw(std::slice::from_ref(url))).collect::<Vec<_>>()).await;
    let (mut sent, mut last) = (Vec::new(), LogIndex::ZERO);
    for (number, client) in clients.iter().enumerate() {
        for payload in payloads(&number.to_string()) {
            let answer = client.propose(&payload).await.unwrap();
            assert!(answer.index > last && !answer.repeat);
            last = answer.index;
            sent.push((answer.index, answer.term, payload));
        }
    }
    for client in &clients {
        let committed = committed_to(client, last).await;
        let seen: Vec<_> = committed.into_iter().map(|entry| (entry.index, entry.term, entry.payload)).collect();
        assert_eq!(seen, sent);
    }
    identical(&cluster).await;
    shutdown(cluster).await;
}

#[tokio::test]
async fn what_one_voter_commits_arrives_byte_identical() {
    proposed_anywhere(1).await;
}

#[tokio::test]
async fn what_is_proposed_at_any_relay_of_three_arrives_byte_identical_on_every_server_and_client() {
    proposed_anywhere(3).await;
}

#[tokio::test]
async fn a_hundred_clients_come_and_go_and_those_before_them_receive_everything() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = started(voters(3, directory.path())).await;
    let urls = cluster.urls();
    let writer = raw(&urls).await;
    let mut last = writer.propose(&Bytes::from("0")).await.unwrap().index;
    let (mut watchers, mut written) = (Vec::new(), 1);
    for many in [1, 2, 10, 100] {
        for seat in cluster.seats() {
            applied(&cluster, seat, last).await;
        }
        let before = identical(&cluster).await;
        let joiners = (watchers.len()..many).map(|number| {
            let mut urls = urls.clone();
            urls.rotate_left(number % 3);
            async move { raw(&urls).await }
        });
        for client in join_all(joiners).await {
            let stream = client.committed_from(LogIndex::FIRST);
            watchers.push((client, stream));
        }
        let after = identical(&cluster).await;
        assert_eq!((before.applied, before.sessions_hash), (after.applied, after.sessions_hash), "joining wrote to the log");
        last = writer.propose(&Bytes::from(written.to_string())).await.unwrap().index;
        written += 1;
    }
    for (_, stream) in &mut watchers {
        for (number, entry) in take(stream, written).await.into_iter().enumerate() {
            assert_eq!(entry.payload, number.to_string());
        }
    }
    let before = identical(&cluster).await;
    join_all(watchers.iter().map(|(client, _)| client.close())).await;
    crate::harness::eventually("only the writer attached", || async {
        let mut clients = 0;
        for seat in cluster.seats() {
            clients += cluster.status(seat).await.unwrap().clients;
        }
        (clients == 1).then_some(())
    })
    .await;
    let after = identical(&cluster).await;
    assert_eq!((before.applied, before.sessions), (after.applied, after.sessions), "leaving wrote to the log");
    shutdown(cluster).await;
}

#[tokio::test]
async fn a_hundred_streams_of_one_client_each_see_every_command_once_from_where_they_began() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = started(voters(3, directory.path())).await;
    let at = url(&cluster, followers(&cluster).await[0]);
    let writer = raw(&cluster.urls()).await;
    // Little is kept here, so that streams which begin early ask the server.
    let reader = client_of(&[at]).history_bytes_max(2_000).raw().connect().await.unwrap();
    let mut indices = Vec::new();
    for number in 0..100_u32 {
        indices.push(writer.propose(&number.to_be_bytes().to_vec().into()).await.unwrap().index);
    }
    let mut streams: Vec<_> = indices.iter().map(|from| reader.committed_from(*from)).collect();
    let more = join_all((100..200_u32).map(|number| writer.propose(&number.to_be_bytes().to_vec().into()).into_future())).await;
    assert!(more.iter().all(Result::is_ok));
    let all = committed_to(&writer, more.into_iter().map(|applied| applied.unwrap().index).max().unwrap()).await;
    assert_eq!(all.len(), 200);
    join_all(streams.iter_mut().enumerate().map(|(skipped, stream)| {
        let expected = &all[skipped..];
        async move { assert_eq!(take(stream, expected.len()).await, expected) }
    }))
    .await;
    shutdown(cluster).await;
}
