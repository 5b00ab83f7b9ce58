//! Tests of the start and the end.

use super::*;

#[tokio::test]
async fn sockets_that_were_handed_over_are_taken_and_not_bound_again() {
    let handed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = handed.local_addr().unwrap();
    let (listeners, addresses) = listen(Some(&[address]), vec![handed]).await.unwrap();
    assert_eq!(listeners.len(), 1);
    assert_eq!(addresses, [address]);
}

#[tokio::test]
async fn with_sockets_handed_over_the_default_address_is_left_alone() {
    let handed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = handed.local_addr().unwrap();
    let (_, addresses) = listen(None, vec![handed]).await.unwrap();
    assert_eq!(addresses, [address]);
}

#[tokio::test]
async fn port_0_is_told_as_the_port_that_it_became() {
    let any = ["127.0.0.1:0".parse().unwrap(), "127.0.0.1:0".parse().unwrap()];
    let (listeners, addresses) = listen(Some(&any), Vec::new()).await.unwrap();
    assert_eq!(listeners.len(), 2);
    assert!(addresses.iter().all(|address| address.port() != 0));
}

#[tokio::test]
async fn an_address_that_is_taken_ends_the_start_with_advice() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = listen(Some(&[address]), Vec::new()).await.unwrap_err().to_string();
    assert!(error.contains(&address.to_string()) && error.contains("--set"), "{error}");
}

#[tokio::test]
async fn a_task_that_ends_before_its_time_is_a_failure() {
    assert!(early_end(Some(Ok(Ok(())))).is_err());
    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
    tasks.spawn(async { panic!("on purpose") });
    let told = early_end(tasks.join_next().await).unwrap_err();
    assert_eq!(told.to_string(), "a task panicked");
}

#[tokio::test]
async fn what_does_not_close_is_left_after_its_time() {
    within(Duration::from_millis(1), "nothing", std::future::pending()).await;
}
