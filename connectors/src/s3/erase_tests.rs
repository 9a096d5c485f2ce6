//! What a listing leaves to do, and what it proves.

use super::*;

fn version(id: &str, is_marker: bool, is_latest: bool) -> Version {
    Version { key: "k".into(), id: id.into(), is_marker, is_latest }
}

fn whole(versions: &[Version]) -> Listed {
    Listed { versions: versions.to_vec(), is_whole: true }
}

fn round(step: Step) -> Round {
    match step {
        Step::Send(round) => round,
        Step::Done(outcome) => panic!("{outcome:?}"),
    }
}

fn done(step: Step) -> Outcome {
    match step {
        Step::Done(outcome) => outcome,
        Step::Send(round) => panic!("{round:?}"),
    }
}

fn ids(versions: &[Version]) -> Vec<&str> {
    versions.iter().map(|version| version.id.as_str()).collect()
}

/// As after an answer.
fn answer(progress: &mut Progress, round: &Round, verdict: Verdict) {
    for version in round.data.iter().chain(&round.markers) {
        progress.note(version, Outcome::new(verdict, "said so"));
    }
}

#[test]
fn the_oldest_goes_first_and_what_hides_last() {
    let there = [version("3", true, true), version("2", false, false), version("1", false, false)];
    let mut progress = Progress::default();
    let round = round(progress.step(Erase::AllVersions, &whole(&there), false));
    assert_eq!((ids(&round.data), ids(&round.markers)), (vec!["1", "2"], vec!["3"]));
    assert!(round.hides.is_empty(), "no marker is added where all goes");
    answer(&mut progress, &round, Verdict::Deleted);
    let outcome = done(progress.step(Erase::AllVersions, &whole(&[]), false));
    assert_eq!(outcome.verdict, Verdict::Deleted);
    assert_eq!(outcome.said, "2 versions and 1 delete marker erased");
    assert_eq!(outcome.verified, Verification::ReadBack);
}

#[test]
fn nothing_listed_is_absent() {
    let outcome = done(Progress::default().step(Erase::AllVersions, &whole(&[]), false));
    assert_eq!((outcome.verdict, outcome.verified), (Verdict::Absent, Verification::ReadBack));
}

#[test]
fn what_is_listed_still_is_not_confirmed() {
    let there = [version("1", false, true)];
    for (said, expected) in [
        (Verdict::Deleted, Verdict::Unknown),
        (Verdict::Absent, Verdict::Unknown),
        (Verdict::Refused, Verdict::Refused),
        (Verdict::Busy, Verdict::Busy),
        (Verdict::Unknown, Verdict::Unknown),
    ] {
        let mut progress = Progress::default();
        let round = round(progress.step(Erase::AllVersions, &whole(&there), false));
        answer(&mut progress, &round, said);
        let outcome = done(progress.step(Erase::AllVersions, &whole(&there), false));
        assert_eq!(outcome.verdict, expected);
    }
}

#[test]
fn a_version_written_after_the_listing_stays_and_is_not_confirmed() {
    let mut progress = Progress::default();
    let first = [version("1", false, true)];
    let round = round(progress.step(Erase::AllVersions, &whole(&first), false));
    answer(&mut progress, &round, Verdict::Deleted);
    let later = [version("2", false, true)];
    let outcome = done(progress.step(Erase::AllVersions, &whole(&later), false));
    assert_eq!(outcome.verdict, Verdict::Busy);
    assert_eq!(outcome.said, "1 version written since it was listed");
}

#[test]
fn a_listing_that_is_not_whole_proves_no_absence_and_goes_on() {
    let part = |versions: &[Version]| Listed { versions: versions.to_vec(), is_whole: false };
    let mut progress = Progress::default();
    let first =
        round(progress.step(Erase::AllVersions, &part(&[version("1", false, true)]), false));
    answer(&mut progress, &first, Verdict::Deleted);
    let second = progress.step(Erase::AllVersions, &whole(&[version("2", false, true)]), false);
    answer(&mut progress, &round(second), Verdict::Deleted);
    assert_eq!(
        done(progress.step(Erase::AllVersions, &whole(&[]), false)).said,
        "2 versions erased"
    );
    // And not for ever.
    let mut progress = Progress::default();
    let outcome =
        done(progress.step(Erase::AllVersions, &part(&[version("1", false, true)]), true));
    assert_eq!(outcome.verdict, Verdict::Busy);
}

#[test]
fn the_current_version_goes_behind_a_marker_and_the_others_are_counted() {
    let there = [version("3", false, true), version("2", false, false), version("1", false, false)];
    let mut progress = Progress::default();
    let round = round(progress.step(Erase::Current, &whole(&there), false));
    assert_eq!((ids(&round.hides), ids(&round.data)), (vec!["3"], vec!["3"]));
    answer(&mut progress, &round, Verdict::Deleted);
    let after = [version("4", true, true), there[1].clone(), there[2].clone()];
    let outcome = done(progress.step(Erase::Current, &whole(&after), false));
    assert_eq!(outcome.verdict, Verdict::Deleted);
    assert_eq!(outcome.said, "1 version erased; 2 older versions remain by configuration");
}

/// Hidden it is, and there all the same.
#[test]
fn a_current_version_that_stays_behind_its_marker_is_not_confirmed() {
    let there = [version("2", false, true), version("1", false, false)];
    let mut progress = Progress::default();
    let round = round(progress.step(Erase::Current, &whole(&there), false));
    answer(&mut progress, &round, Verdict::Refused);
    let after = [version("3", true, true), version("2", false, false), version("1", false, false)];
    let outcome = done(progress.step(Erase::Current, &whole(&after), false));
    assert_eq!(outcome.verdict, Verdict::Refused);
}

#[test]
fn a_lone_version_needs_no_marker_and_a_hidden_key_is_absent() {
    let alone = [version("1", false, true)];
    let round = round(Progress::default().step(Erase::Current, &whole(&alone), false));
    assert!(round.hides.is_empty());
    let hidden = [version("2", true, true), version("1", false, false)];
    let outcome = done(Progress::default().step(Erase::Current, &whole(&hidden), false));
    assert_eq!(outcome.verdict, Verdict::Absent);
    assert_eq!(outcome.said, "no current version; 1 older version remains by configuration");
}

#[test]
fn an_upload_that_is_left_is_not_confirmed() {
    let aborted = |count, left: Option<Outcome>| Aborted { count, left };
    let absent = Outcome::new(Verdict::Absent, "nothing is listed");
    let outcome = with_uploads(absent.clone(), &aborted(2, None));
    assert_eq!(outcome.verdict, Verdict::Deleted);
    assert_eq!(outcome.said, "nothing is listed; 2 unfinished uploads aborted");
    let left = Outcome::new(Verdict::Busy, "listed still");
    assert_eq!(with_uploads(absent, &aborted(1, Some(left.clone()))), left);
}
