//! Who may write, and who may not.

use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::Method;

use crate::made::Made;
use crate::world::{Client, Settings};
use crate::{Lab, add_token, basic, expect_refused, tokens};

#[tokio::test]
async fn nobody_writes_before_there_is_a_token() {
    let snowberry = Settings::new().start().await;
    let made = Made::noise("nobody", 1000);
    for path in [made.narinfo_url(), format!("/push/{}", made.file_url()), "/x".to_owned()] {
        let answer = snowberry.client().put(&path, "x").await;
        expect_refused(&answer, 403, "snowberry token add NAME");
    }
    // One that is made now counts at once.
    let token = add_token(&snowberry, "ada", 7);
    let authorization = basic(&token);
    let headers = [("authorization", authorization.as_str())];
    let client = snowberry.client();
    let body = made.file.clone().into();
    let put = client.ask(Method::PUT, &format!("/{}", made.file_url()), &headers, body).await;
    assert_eq!(put.status, 200, "{}", put.text());
}

#[tokio::test]
async fn only_a_token_that_counts_may_write() {
    let lab = Lab::new().await;
    let made = Made::noise("counts", 1000);
    let client = lab.snowberry.client();
    expect_refused(&client.put(&made.narinfo_url(), "x").await, 403, "need a token");
    let wrong = basic("snowberry_wrong");
    let headers = [("authorization", wrong.as_str())];
    let answer = client.ask(Method::PUT, &made.narinfo_url(), &headers, "x".into()).await;
    expect_refused(&answer, 403, "no token of this cache");
    // In the place of the name it counts for nothing.
    let as_name = format!("Basic {}", STANDARD.encode(format!("{}:", lab.token)));
    let headers = [("authorization", as_name.as_str())];
    let answer = client.ask(Method::PUT, &made.narinfo_url(), &headers, "x".into()).await;
    assert_eq!(answer.status, 403);

    assert_eq!(lab.put_nar(&made).await.status, 200);
    assert!(tokens(&lab.snowberry).remove("tester").unwrap());
    expect_refused(&lab.put_nar(&made).await, 403, "snowberry token add NAME");
    assert_eq!(lab.narinfo(&made).await, None);
}

#[tokio::test]
async fn a_host_of_others_is_refused() {
    let lab = Lab::new().await;
    let answer = lab.put_with("/nix-cache-info", &[("host", "evil.example")], "x").await;
    expect_refused(&answer, 403, "does not answer under that name");
}

/// The machine's own address that is not loopback, where there is one.
fn outer_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    // Sends nothing: only the route is looked up.
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback()).then_some(address)
}

#[tokio::test]
async fn over_plain_http_a_token_is_taken_from_this_machine_only() {
    let Some(outer) = outer_address() else { return };
    let any = r#"listen=["0.0.0.0:0"]"#;
    for (settings, may) in
        [(Settings::new().set(any), false), (Settings::new().set(any).set("push.plain=true"), true)]
    {
        let lab = Lab::with(settings).await;
        let client = Client((outer, lab.snowberry.address.port()).into());
        let authorization = basic(&lab.token);
        let headers = [("authorization", authorization.as_str())];
        let body = "StoreDir: /nix/store\n";
        let answer = client.ask(Method::PUT, "/nix-cache-info", &headers, body.into()).await;
        if may {
            assert_eq!(answer.status, 200, "{}", answer.text());
        } else {
            expect_refused(&answer, 403, "push.plain = true");
        }
    }
}
