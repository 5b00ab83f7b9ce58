//! An uploader's own URL, which its client asks for a month: the same NAR in the same codec.

use std::io::Read;

use snowberry::nix::Compression;

use crate::Lab;
use crate::made::Made;

fn decode(body: &[u8], compression: Compression) -> Vec<u8> {
    let mut nar = Vec::new();
    match compression {
        Compression::None => nar.extend(body),
        Compression::Zstd => nar = zstd::decode_all(body).unwrap(),
        Compression::Xz => {
            liblzma::read::XzDecoder::new(body).read_to_end(&mut nar).unwrap();
        }
        Compression::Bzip2 => {
            bzip2::read::BzDecoder::new(body).read_to_end(&mut nar).unwrap();
        }
        Compression::Gzip => {
            flate2::read::GzDecoder::new(body).read_to_end(&mut nar).unwrap();
        }
        Compression::Br => {
            brotli::Decompressor::new(body, 4096).read_to_end(&mut nar).unwrap();
        }
    }
    nar
}

#[tokio::test]
async fn every_codec_comes_back_as_the_same_nar() {
    let lab = Lab::new().await;
    for compression in Compression::ALL {
        let name = format!("alias-{}", compression.label());
        let made = Made::mixed(&name, 1_500_000).packed(compression);
        lab.push(&made).await;
        let url = format!("/{}", made.file_url());
        let answer = lab.get(&url).await;
        assert_eq!((answer.status, answer.whole), (200, true), "{}", compression.label());
        assert!(decode(&answer.body, compression) == made.nar, "{}", compression.label());
        assert_eq!(answer.header("content-encoding"), None);
        let len = answer.header("content-length").map(|len| len.parse::<usize>().unwrap());
        match compression {
            Compression::None => assert_eq!(len, Some(made.nar.len())),
            Compression::Zstd => assert_eq!(len, Some(made.file.len())),
            Compression::Xz | Compression::Bzip2 | Compression::Gzip | Compression::Br => {
                assert_eq!(len, None);
            }
        }
        let is_stored = compression == Compression::Zstd;
        assert_eq!(answer.header("accept-ranges").is_some(), is_stored);
        let head = lab.head(&url).await;
        assert_eq!(head.status, 200);
        assert!(head.header("content-length").is_none_or(|len| len != "0"), "{head:?}");
        let headers = [("range", "bytes=1000-")];
        let part = lab.snowberry.client().get_with(&url, &headers).await;
        if is_stored {
            assert_eq!((part.status, &part.body[..]), (206, &made.file[1000..]));
        } else {
            assert_eq!(part.status, 404);
        }
        let from_start = lab.snowberry.client().get_with(&url, &[("range", "bytes=0-")]).await;
        assert!(matches!(from_start.status, 200 | 206));
    }
}

#[tokio::test]
async fn a_nar_is_there_for_its_uploader_before_its_narinfo() {
    let lab = Lab::new().await;
    let made = Made::mixed("early", 100_000);
    let url = format!("/push/{}", made.file_url());
    assert_eq!(lab.head(&url).await.status, 404);
    assert_eq!(lab.put_nar(&made).await.status, 200);
    assert_eq!(lab.head(&url).await.status, 200);
    assert_eq!(lab.get(&made.narinfo_url()).await.status, 404);
}

#[tokio::test]
async fn many_at_once_are_bounded_and_none_is_wrong() {
    let lab = Lab::new().await;
    let made = Made::mixed("many", 3_000_000);
    lab.push(&made).await;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let (client, url) = (lab.snowberry.client(), format!("/{}", made.file_url()));
        clients.spawn(async move { client.get(&url).await });
    }
    let mut served = 0;
    while let Some(answer) = clients.join_next().await {
        let answer = answer.unwrap();
        if answer.status == 404 {
            continue;
        }
        assert!(answer.status == 200 && answer.whole);
        assert!(decode(&answer.body, Compression::Xz) == made.nar);
        served += 1;
    }
    assert!(served > 0);
}
