//! Days of the calendar from seconds since 1970, in UTC. Pure.

/// Seconds in an hour.
pub(super) const HOUR_S: u64 = 60 * 60;

/// Seconds in a day.
pub(super) const DAY_S: u64 = 24 * HOUR_S;

/// This version was made after the beginning of 2026: a clock before that was never set.
const CLOCK_MIN_S: u64 = 1_767_225_600;

/// A clock beyond 2100 is wrong too: certificates do not reach that far.
const CLOCK_MAX_S: u64 = 4_102_444_800;

/// Names of months as they stand under a plot.
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Whether a clock can be right.
pub(super) fn is_sane(now_s: u64) -> bool {
    (CLOCK_MIN_S..CLOCK_MAX_S).contains(&now_s)
}

/// Year, month and day of month of a day since 1970, by the civil calendar in eras of 400 years.
pub(super) fn date(days: u64) -> (u64, u64, u64) {
    // Days are counted from 1 March of the year 0, so that a leap day ends its year.
    let since_march = days + 719_468;
    let (era, day) = (since_march / 146_097, since_march % 146_097);
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day_of_month)
}

/// `2026-11-21`.
pub(super) fn day(days: u64) -> String {
    let (year, month, day_of_month) = date(days);
    format!("{year:04}-{month:02}-{day_of_month:02}")
}

/// `2026-11-21T13:00:00Z` (RFC 3339).
pub(super) fn utc(seconds: u64) -> String {
    let second = seconds % DAY_S;
    let (hour, minute, second) = (second / HOUR_S, second / 60 % 60, second % 60);
    format!("{}T{hour:02}:{minute:02}:{second:02}Z", day(seconds / DAY_S))
}

/// `Nov`.
pub(super) fn month_name(month: u64) -> &'static str {
    let index = usize::try_from(month).unwrap_or(0).wrapping_sub(1);
    MONTHS.get(index).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_795_266_000, "2026-11-21T13:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(seconds), expected);
        }
        assert_eq!(
            [month_name(1), month_name(12), month_name(0), month_name(13)],
            ["Jan", "Dec", "", ""]
        );
    }

    #[test]
    fn a_clock_that_was_never_set_is_not_sane() {
        for (now_s, sane) in
            [(0, false), (1_577_836_800, false), (CLOCK_MIN_S, true), (CLOCK_MAX_S, false)]
        {
            assert_eq!(is_sane(now_s), sane, "{now_s}");
        }
    }
}
