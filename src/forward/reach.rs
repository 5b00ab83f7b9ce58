//! Which caches of the house are there, as far as is known: a state for each, moved by events whose
//! time is an argument. Decides who is asked and when somebody is probed; asks nobody itself.

use std::time::{Duration, Instant};

/// How long the first questions may wait for the verdict on a cache that was never tried: it is
/// less than any Nix notices, and more than a Pi on a good Wi-Fi takes for a TLS handshake.
pub(super) const FIRST_WAIT: Duration = Duration::from_secs(1);

/// First pause before a cache that is away is probed again: a restart of it takes about this long.
const PROBE_PAUSE_MIN: Duration = Duration::from_millis(250);

/// Longest pause: it doubles up to here. A cache without mDNS is found this long after it came
/// back, and a machine elsewhere sends a packet this often while it builds.
const PROBE_PAUSE_MAX: Duration = Duration::from_secs(15);

/// How long after the last question probing goes on. Nobody builds: nothing is sent.
const ASKED_LATELY: Duration = Duration::from_mins(2);

/// Two probes of one cache are this far apart whatever happens: links that flap and announcements
/// that come in bursts make no burst of probes.
const PROBE_GAP: Duration = Duration::from_millis(200);

/// What is known of one cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not tried yet; questions wait for it until then.
    Unknown { until: Instant },
    /// It answers.
    Here,
    /// It does not; probed again after the pause, while somebody asks.
    Away { since: Instant, pause: Duration },
}

/// One cache.
#[derive(Debug)]
struct Seen<K> {
    place: K,
    state: State,
    /// Whether it is still announced, joined or configured.
    is_listed: bool,
    probed: Option<Instant>,
    is_probing: bool,
    /// A probe is wanted whether or not somebody asks.
    is_doubted: bool,
}

/// Whom a question goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict<K> {
    /// This cache.
    Go(K),
    /// Nobody yet: wait for a change, until then.
    Wait(Instant),
    /// Nobody.
    Away,
}

/// All caches in their order of preference. `K` says where one is; two that are equal are one.
#[derive(Debug)]
pub(super) struct Reach<K> {
    seen: Vec<Seen<K>>,
    asked: Option<Instant>,
    /// Until when somebody may still be found who is not in the list.
    finding_until: Option<Instant>,
}

impl<K: Clone + Eq> Reach<K> {
    /// Nobody is known. With `finding`, caches that are not listed may be found a moment after the
    /// start.
    pub(super) fn new(finding: bool, now: Instant) -> Self {
        Self { seen: Vec::new(), asked: None, finding_until: finding.then(|| now + FIRST_WAIT) }
    }

    /// The caches that are announced, joined or configured now. What is new is probed, what was
    /// away and is named again too; what is named no more is doubted, and gone once it is away.
    pub(super) fn list(&mut self, places: Vec<K>, now: Instant) {
        for seen in &mut self.seen {
            seen.is_listed = false;
            seen.is_doubted |= seen.state == State::Here && !places.contains(&seen.place);
        }
        let mut listed: Vec<Seen<K>> = Vec::new();
        for place in places {
            let known = self.seen.iter().position(|seen| seen.place == place);
            let mut seen = match known {
                Some(at) => self.seen.remove(at),
                None => Seen {
                    place,
                    state: State::Unknown { until: now + FIRST_WAIT },
                    is_listed: true,
                    probed: None,
                    is_probing: false,
                    is_doubted: true,
                },
            };
            seen.is_listed = true;
            if let State::Away { pause, .. } = &mut seen.state {
                seen.is_doubted = true;
                *pause = PROBE_PAUSE_MIN;
            }
            listed.push(seen);
        }
        listed.append(&mut self.seen);
        self.seen = listed;
        self.forget();
    }

    /// Somebody asks, and may not be sent to any of `but`.
    pub(super) fn ask(&mut self, but: &[K], now: Instant) -> Verdict<K> {
        let lately = self.is_asked_lately(now);
        self.asked = Some(now);
        let mut wait = self.finding_until.filter(|until| *until > now);
        for seen in &mut self.seen {
            if but.contains(&seen.place) {
                continue;
            }
            match &mut seen.state {
                State::Here => return Verdict::Go(seen.place.clone()),
                State::Unknown { until } if *until > now => wait = wait.max(Some(*until)),
                State::Away { pause, .. } if !lately => *pause = PROBE_PAUSE_MIN,
                State::Unknown { .. } | State::Away { .. } => {}
            }
        }
        wait.map_or(Verdict::Away, Verdict::Wait)
    }

    /// The caches that are to be probed now; each is being probed from then on.
    pub(super) fn due(&mut self, now: Instant) -> Vec<K> {
        let lately = self.is_asked_lately(now);
        let mut due = Vec::new();
        for seen in &mut self.seen {
            if seen.due_at(lately).is_some_and(|at| at <= now) {
                (seen.is_probing, seen.is_doubted, seen.probed) = (true, false, Some(now));
                due.push(seen.place.clone());
            }
        }
        due
    }

    /// When [`Self::due`] has something to say, if nothing happens before.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        let lately = self.is_asked_lately(now);
        self.seen.iter().filter_map(|seen| seen.due_at(lately)).min()
    }

    /// A probe of [`Self::due`] ended. Returns whether the cache's state is another now.
    pub(super) fn probed(&mut self, place: &K, answered: bool, now: Instant) -> bool {
        let Some(seen) = self.find(place) else { return false };
        seen.is_probing = false;
        let was_here = seen.state == State::Here;
        let was_unknown = matches!(seen.state, State::Unknown { .. });
        if answered {
            seen.state = State::Here;
        } else {
            seen.leave(now);
            self.forget();
        }
        was_unknown || was_here != answered
    }

    /// The cache gave no sign of life. Returns whether it was here until now.
    pub(super) fn lost(&mut self, place: &K, now: Instant) -> bool {
        let Some(seen) = self.find(place) else { return false };
        let was_here = seen.state == State::Here;
        if was_here {
            seen.leave(now);
            self.forget();
        }
        was_here
    }

    /// Something is odd with this cache, such as a reset connection: it is probed at once.
    pub(super) fn doubt(&mut self, place: &K) {
        if let Some(seen) = self.find(place) {
            seen.is_doubted = true;
        }
    }

    /// An address or a link of this machine is another, or something else makes it worth while: every
    /// cache is probed, and those that were away often again.
    pub(super) fn look_again(&mut self) {
        for seen in &mut self.seen {
            seen.is_doubted = true;
            if let State::Away { pause, .. } = &mut seen.state {
                *pause = PROBE_PAUSE_MIN;
            }
        }
    }

    /// Whether any cache is here.
    pub(super) fn is_any_here(&self) -> bool {
        self.seen.iter().any(|seen| seen.state == State::Here)
    }

    fn find(&mut self, place: &K) -> Option<&mut Seen<K>> {
        self.seen.iter_mut().find(|seen| seen.place == *place)
    }

    fn is_asked_lately(&self, now: Instant) -> bool {
        self.asked.is_some_and(|asked| now.saturating_duration_since(asked) < ASKED_LATELY)
    }

    /// Drops what is neither named nor here. A probe that is under way ends first.
    fn forget(&mut self) {
        self.seen.retain(|seen| seen.is_listed || seen.state == State::Here);
    }
}

impl<K> Seen<K> {
    fn due_at(&self, asked_lately: bool) -> Option<Instant> {
        if self.is_probing {
            return None;
        }
        let wanted = match self.state {
            _ if self.is_doubted => None,
            State::Away { since, pause } if asked_lately => Some(since + pause),
            State::Unknown { .. } | State::Here | State::Away { .. } => return None,
        };
        let spaced = self.probed.map(|probed| probed + PROBE_GAP);
        // A doubt about what was never probed is due since ever.
        wanted.max(spaced).or_else(|| self.state.began())
    }

    fn leave(&mut self, now: Instant) {
        let pause = match self.state {
            State::Away { pause, .. } => (pause * 2).min(PROBE_PAUSE_MAX),
            State::Unknown { .. } | State::Here => PROBE_PAUSE_MIN,
        };
        self.state = State::Away { since: now, pause };
    }
}

impl State {
    /// A moment that is not later than when it began.
    fn began(self) -> Option<Instant> {
        match self {
            Self::Unknown { until } => until.checked_sub(FIRST_WAIT),
            Self::Away { since, .. } => Some(since),
            Self::Here => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const MINUTE: Duration = Duration::from_mins(1);

    /// One cache that is configured, at a start.
    fn fixed() -> (Reach<&'static str>, Instant) {
        let now = Instant::now();
        let mut reach = Reach::new(false, now);
        reach.list(vec!["pi"], now);
        (reach, now)
    }

    /// The same, once it answered.
    fn here() -> (Reach<&'static str>, Instant) {
        let (mut reach, now) = fixed();
        assert_eq!(reach.due(now), ["pi"]);
        assert!(reach.probed(&"pi", true, now + MS));
        (reach, now + MS)
    }

    #[test]
    fn the_first_question_waits_for_the_verdict_and_no_longer() {
        let (mut reach, now) = fixed();
        assert_eq!(reach.ask(&[], now), Verdict::Wait(now + FIRST_WAIT));
        assert_eq!(reach.due(now), ["pi"]);
        assert_eq!(reach.due(now), [""; 0], "one probe at a time");
        assert_eq!(reach.ask(&[], now + FIRST_WAIT), Verdict::Away);
        assert!(reach.probed(&"pi", true, now + 2 * FIRST_WAIT));
        assert_eq!(reach.ask(&[], now + 2 * FIRST_WAIT), Verdict::Go("pi"));
    }

    #[test]
    fn with_nobody_to_find_nobody_waits() {
        let now = Instant::now();
        let mut reach: Reach<&str> = Reach::new(false, now);
        assert_eq!(reach.ask(&[], now), Verdict::Away);
        let mut finding: Reach<&str> = Reach::new(true, now);
        assert_eq!(finding.ask(&[], now), Verdict::Wait(now + FIRST_WAIT));
        assert_eq!(finding.ask(&[], now + FIRST_WAIT), Verdict::Away);
        assert_eq!(finding.next_due(now), None);
    }

    #[test]
    fn away_is_probed_less_and_less_and_only_while_somebody_asks() {
        let (mut reach, mut now) = fixed();
        assert_eq!(reach.ask(&[], now), Verdict::Wait(now + FIRST_WAIT));
        let (mut probes, start) = (0, now);
        while now < start + ASKED_LATELY {
            if !reach.due(now).is_empty() {
                probes += 1;
                reach.probed(&"pi", false, now);
                assert_eq!(reach.ask(&["pi"], start), Verdict::Away);
            }
            let Some(next) = reach.next_due(now) else { break };
            now = next;
        }
        assert!((10..=16).contains(&probes), "{probes} probes in {ASKED_LATELY:?}");
        // Nobody asks any more.
        assert_eq!(reach.due(start + 5 * MINUTE), [""; 0]);
        assert_eq!(reach.next_due(start + 5 * MINUTE), None);
        // Somebody does: no wait, one probe soon.
        let later = start + 10 * MINUTE;
        assert_eq!(reach.ask(&[], later), Verdict::Away);
        assert_eq!(reach.due(later), ["pi"]);
        assert!(reach.probed(&"pi", true, later + MS));
        assert_eq!(reach.ask(&[], later + MS), Verdict::Go("pi"));
    }

    #[test]
    fn questions_do_not_make_probes() {
        let (mut reach, now) = fixed();
        reach.due(now);
        reach.probed(&"pi", false, now);
        let mut probes = 0;
        for ms in 0..2_000 {
            let now = now + ms * MS;
            assert_eq!(reach.ask(&[], now), Verdict::Away);
            if !reach.due(now).is_empty() {
                probes += 1;
                reach.probed(&"pi", false, now);
            }
        }
        assert_eq!(probes, 3, "after 0.25, 0.75 and 1.75 s");
    }

    #[test]
    fn what_is_lost_is_away_at_once_and_tried_soon() {
        let (mut reach, now) = here();
        assert_eq!(reach.ask(&[], now), Verdict::Go("pi"));
        assert!(reach.lost(&"pi", now));
        assert!(!reach.lost(&"pi", now), "said once");
        assert_eq!(reach.ask(&[], now), Verdict::Away);
        assert_eq!(reach.next_due(now), Some(now + PROBE_PAUSE_MIN));
    }

    #[test]
    fn an_announcement_of_what_is_away_is_tried_at_once() {
        let (mut reach, now) = here();
        reach.lost(&"pi", now);
        let later = now + 30 * MINUTE;
        assert_eq!(reach.due(later), [""; 0]);
        reach.list(vec!["pi"], later);
        assert_eq!(reach.due(later), ["pi"]);
        assert!(reach.probed(&"pi", true, later));
        assert_eq!(reach.ask(&[], later), Verdict::Go("pi"));
    }

    #[test]
    fn what_says_goodbye_is_asked_until_it_is_gone() {
        let (mut reach, now) = here();
        reach.list(Vec::new(), now);
        assert_eq!(reach.ask(&[], now), Verdict::Go("pi"));
        assert_eq!(reach.due(now + PROBE_GAP), ["pi"]);
        assert!(reach.probed(&"pi", false, now + PROBE_GAP));
        assert_eq!(reach.ask(&[], now + PROBE_GAP), Verdict::Away);
        assert_eq!(reach.next_due(now + PROBE_GAP), None, "it is forgotten");
    }

    #[test]
    fn another_address_is_another_place() {
        let (mut reach, now) = here();
        reach.list(vec!["moved"], now);
        assert_eq!(reach.due(now + PROBE_GAP), ["moved", "pi"]);
        reach.probed(&"pi", false, now + PROBE_GAP);
        assert!(matches!(reach.ask(&[], now + PROBE_GAP), Verdict::Wait(_)));
        reach.probed(&"moved", true, now + PROBE_GAP);
        assert_eq!(reach.ask(&[], now + PROBE_GAP), Verdict::Go("moved"));
    }

    #[test]
    fn links_that_change_make_one_probe_each_time() {
        let (mut reach, now) = here();
        let later = now + MINUTE;
        for _ in 0..100 {
            reach.look_again();
            assert_eq!(reach.ask(&[], later), Verdict::Go("pi"), "nobody waits");
        }
        assert_eq!(reach.due(later), ["pi"]);
        reach.look_again();
        reach.probed(&"pi", true, later);
        assert_eq!(reach.due(later), [""; 0]);
        assert_eq!(reach.due(later + PROBE_GAP), ["pi"]);
    }

    #[test]
    fn the_second_one_is_asked_when_the_first_is_not_to_be_had() {
        let now = Instant::now();
        let mut reach = Reach::new(true, now);
        reach.list(vec!["a", "b"], now);
        assert_eq!(reach.due(now), ["a", "b"]);
        reach.probed(&"b", true, now);
        assert_eq!(reach.ask(&[], now), Verdict::Go("b"), "nobody waits for a better one");
        reach.probed(&"a", true, now);
        assert_eq!(reach.ask(&[], now), Verdict::Go("a"));
        assert_eq!(reach.ask(&["a"], now), Verdict::Go("b"));
        assert!(matches!(reach.ask(&["a", "b"], now), Verdict::Wait(_)));
    }
}
