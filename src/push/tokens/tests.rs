//! Tests of the tokens file: a life of a token, what is refused, two writers at once.

use std::fs::Permissions;

use super::*;

fn tokens() -> (tempfile::TempDir, Tokens) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state/tokens");
    (folder, Tokens::new(path))
}

#[test]
fn a_token_is_good_from_its_making_to_its_removal() {
    let (_folder, commands) = tokens();
    let server = Tokens::new(commands.path.clone());
    assert_eq!(server.verdict("").unwrap(), Verdict::NoneMade);
    let laptop = commands.add("laptop", [1; SECRET_LEN], 7).unwrap();
    assert!(laptop.starts_with("snowberry_") && laptop.len() == 10 + 32, "{laptop}");
    assert_eq!(server.verdict(&laptop).unwrap(), Verdict::Writer("laptop".into()));
    let tower = commands.add("tower", [2; SECRET_LEN], 8).unwrap();
    assert_eq!(server.verdict(&laptop).unwrap(), Verdict::Writer("laptop".into()));
    assert_eq!(server.verdict(&tower).unwrap(), Verdict::Writer("tower".into()));
    let (bare, longer) = (laptop.strip_prefix(PREFIX).unwrap(), format!("{laptop} "));
    for wrong in ["", "laptop", PREFIX, bare, &longer] {
        assert_eq!(server.verdict(wrong).unwrap(), Verdict::Unknown, "{wrong:?}");
    }
    assert!(commands.remove("laptop").unwrap());
    assert!(!commands.remove("laptop").unwrap());
    assert_eq!(server.verdict(&laptop).unwrap(), Verdict::Unknown);
    let names: Vec<(String, u64)> =
        commands.list().unwrap().into_iter().map(|it| (it.name, it.created_s)).collect();
    assert_eq!(names, [("tower".to_owned(), 8)]);
    assert!(commands.remove("tower").unwrap());
    assert_eq!(server.verdict(&tower).unwrap(), Verdict::NoneMade);
}

#[test]
fn the_file_is_for_its_owner_and_holds_no_token() {
    let (_folder, tokens) = tokens();
    let token = tokens.add("a", [3; SECRET_LEN], 0).unwrap();
    let mode = tokens.path.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let secret = token.strip_prefix(PREFIX).unwrap();
    assert!(!std::fs::read_to_string(&tokens.path).unwrap().contains(secret));
}

#[test]
fn a_file_that_is_not_understood_lets_nobody_write() {
    let (_folder, tokens) = tokens();
    let token = tokens.add("a", [4; SECRET_LEN], 0).unwrap();
    let good = std::fs::read_to_string(&tokens.path).unwrap();
    let line = good.lines().last().unwrap();
    let cut = good.split_at(good.len() - 12).0;
    let short = line.replace(' ', " 0");
    let twice = format!("{good}{line}\n");
    let surplus = format!("{line} x\n");
    let long = format!("{good}#{}\n", "x".repeat(usize::try_from(FILE_LEN_MAX).unwrap()));
    let many: String =
        (0..=TOKENS_MAX).map(|n| line.replacen('a', &format!("n{n}"), 1) + "\n").collect();
    for text in [cut, "a\n", &short, &twice, &surplus, &long, &many] {
        std::fs::write(&tokens.path, text).unwrap();
        assert!(tokens.verdict(&token).is_err(), "{text}");
        assert!(tokens.add("b", [5; SECRET_LEN], 0).is_err(), "{text}");
    }
    std::fs::write(&tokens.path, [0xff]).unwrap();
    assert!(tokens.verdict(&token).is_err());
    std::fs::write(&tokens.path, &good).unwrap();
    assert_eq!(tokens.verdict(&token).unwrap(), Verdict::Writer("a".into()));
    std::fs::set_permissions(&tokens.path, Permissions::from_mode(0o620)).unwrap();
    assert!(matches!(tokens.verdict(&token), Err(TokensError::Open { .. })));
}

#[test]
fn a_file_that_cannot_be_read_lets_nobody_write() {
    let (_folder, tokens) = tokens();
    std::fs::create_dir_all(&tokens.path).unwrap();
    assert!(tokens.verdict("x").is_err());
    assert!(tokens.add("a", [0; SECRET_LEN], 0).is_err());
}

#[test]
fn names_are_words_and_are_used_once() {
    let (_folder, tokens) = tokens();
    let long = "x".repeat(NAME_LEN_MAX + 1);
    for name in ["", "a b", "#a", "-a", "a\n", "a:b", &long] {
        let told = tokens.add(name, [0; SECRET_LEN], 0);
        assert!(matches!(told, Err(TokensError::Name { .. })), "{name:?}");
    }
    tokens.add("ada@tower-1.local_x", [0; SECRET_LEN], 0).unwrap();
    let again = tokens.add("ada@tower-1.local_x", [1; SECRET_LEN], 0);
    assert!(matches!(again, Err(TokensError::Exists { .. })));
}

#[test]
fn there_are_not_more_tokens_than_can_be_compared() {
    let (_folder, tokens) = tokens();
    let full: Vec<Token> = (0..TOKENS_MAX)
        .map(|n| Token { name: format!("n{n}"), created_s: u64::MAX, digest: [0; 32] })
        .collect();
    tokens.add("first", [0; SECRET_LEN], 0).unwrap();
    durable::write_private(&tokens.path, &print(&full)).unwrap();
    assert_eq!(tokens.list().unwrap(), full);
    assert!(matches!(tokens.add("more", [0; SECRET_LEN], 0), Err(TokensError::TooMany)));
}

#[test]
fn two_writers_at_once_lose_nothing() {
    let (_folder, tokens) = tokens();
    std::thread::scope(|scope| {
        for writer in 0..4_u8 {
            let path = tokens.path.clone();
            scope.spawn(move || {
                for n in 0..8 {
                    let name = format!("w{writer}-{n}");
                    Tokens::new(path.clone()).add(&name, [writer; SECRET_LEN], 0).unwrap();
                }
            });
        }
    });
    assert_eq!(tokens.list().unwrap().len(), 32);
}
