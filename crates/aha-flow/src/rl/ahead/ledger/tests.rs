//! Pace, order and age of groups.

use super::*;

fn rule(k: u64) -> Rule {
    Rule {
        max_staleness: k,
        per_step: 2,
        resample_rounds: 0,
        steps: 10,
        waits: false,
        one_by_one: false,
    }
}

/// A ledger of a stage that begins, whose first weights are published.
fn begun(rule: Rule) -> Ledger<&'static str> {
    let mut ledger = Ledger::new(rule, Asked::default(), 0);
    ledger.publish(0, 0);
    ledger
}

fn group(rows: &'static str, oldest: u64) -> Outcome<&'static str> {
    Ok(Group { rows, oldest, has_spread: true, tokens: 3 })
}

fn flat(rows: &'static str) -> Outcome<&'static str> {
    Ok(Group { rows, oldest: 0, has_spread: false, tokens: 3 })
}

/// Feeds all rounds that may begin after `step` steps; their prompts are `R.0` and `R.1`.
fn feed(ledger: &mut Ledger<&'static str>, step: u64) -> Vec<u64> {
    let rounds: Vec<u64> = std::iter::from_fn(|| ledger.next_round(step)).collect();
    rounds.iter().for_each(|&round| ledger.fed(round, ids(round)));
    rounds
}

fn ids(round: u64) -> Vec<String> {
    (0..2).map(|place| format!("{round}.{place}")).collect()
}

fn rows(taken: &Taken<&'static str>) -> Vec<(Fate, &'static str)> {
    taken.groups.iter().map(|(fate, group)| (*fate, group.rows)).collect()
}

#[test]
fn no_more_groups_begin_than_the_staleness_allows() {
    for k in 1..4 {
        let mut ledger = begun(rule(k));
        let first: Vec<u64> = (1..=k + 1).collect();
        assert_eq!(feed(&mut ledger, 0), first, "{k}");
        assert_eq!(feed(&mut ledger, 0), [0_u64; 0]);
        assert!(ledger.arrive(1, "1.1", group("b", 0)));
        assert!(ledger.arrive(1, "1.0", group("a", 0)));
        assert_eq!(feed(&mut ledger, 0), [0_u64; 0], "what waits counts");
        let taken = ledger.take(1).unwrap();
        assert_eq!(rows(&taken), [(Fate::Kept, "a"), (Fate::Kept, "b")]);
        assert_eq!(feed(&mut ledger, 0), [0_u64; 0], "what is trained on counts");
        ledger.publish(1, 1);
        assert_eq!(feed(&mut ledger, 1), [k + 2]);
    }
}

#[test]
fn rounds_that_depend_on_each_other_begin_one_by_one() {
    let mut ledger = begun(Rule { one_by_one: true, ..rule(2) });
    assert_eq!((ledger.next_round(0), ledger.next_round(0)), (Some(1), None));
    ledger.fed(1, ids(1));
    assert_eq!((ledger.next_round(0), ledger.next_round(0)), (Some(2), None));
}

#[test]
fn a_stage_asks_for_no_more_than_its_steps_take() {
    let mut ledger = begun(Rule { steps: 2, ..rule(8) });
    assert_eq!(feed(&mut ledger, 0), [1, 2]);
    // A group that doesn't count any more has another in its place.
    let mut ledger = begun(Rule { steps: 1, resample_rounds: 1, ..rule(8) });
    assert_eq!(feed(&mut ledger, 0), [1]);
    assert!(ledger.arrive(1, "1.0", flat("a")));
    assert_eq!(feed(&mut ledger, 0), [2]);
}

#[test]
fn the_earliest_rounds_go_first_whatever_the_order_of_arrival() {
    let mut ledger = begun(rule(2));
    feed(&mut ledger, 0);
    assert!(ledger.arrive(3, "3.0", group("e", 0)));
    assert!(ledger.take(1).is_none());
    assert!(ledger.arrive(2, "2.1", group("d", 0)));
    assert!(ledger.arrive(1, "1.0", group("a", 0)));
    let taken = ledger.take(1).unwrap();
    assert_eq!(rows(&taken), [(Fate::Kept, "a"), (Fate::Kept, "d")]);
    assert_eq!(ledger.tokens_waiting(), 3);
    assert!(!ledger.arrive(1, "1.0", group("again", 0)), "a group arrives once");
    assert!(!ledger.arrive(7, "7.0", group("never", 0)));
}

#[test]
fn a_group_that_was_overtaken_too_often_is_stale_and_another_comes_in_its_place() {
    let mut ledger = begun(rule(1));
    feed(&mut ledger, 0);
    // The group 1.0 takes its time.
    for (step, [first, second]) in [[(1, "1.1"), (2, "2.0")], [(2, "2.1"), (3, "3.0")]]
        .into_iter()
        .enumerate()
        .map(|(i, pair)| (i as u64 + 1, pair))
    {
        for (round, id) in [first, second] {
            assert!(ledger.arrive(round, id, group("young", step - 1)), "{id}");
        }
        assert_eq!(ledger.take(step).unwrap().groups.len(), 2);
        ledger.publish(10 * step, step);
        feed(&mut ledger, step);
    }
    assert_eq!((ledger.age(0, 2), ledger.age(10, 2), ledger.age(25, 2)), (None, Some(1), Some(0)));
    assert!(ledger.arrive(1, "1.0", group("old", 0)));
    assert!(ledger.arrive(3, "3.1", group("young", 10)));
    assert!(ledger.take(3).is_none());
    // What is stale counts no more.
    assert!(ledger.arrive(4, "4.1", group("younger", 20)));
    let taken = ledger.take(3).unwrap();
    let wanted = [(Fate::Stale, "old"), (Fate::Kept, "young"), (Fate::Kept, "younger")];
    assert_eq!(rows(&taken), wanted);
}

#[test]
fn a_step_may_wait_for_groups_that_would_be_too_old_after_it() {
    let mut ledger = begun(Rule { waits: true, ..rule(1) });
    feed(&mut ledger, 0);
    for (round, id) in [(1, "1.1"), (2, "2.0")] {
        assert!(ledger.arrive(round, id, group("young", 0)));
    }
    assert_eq!(
        ledger.take(1).unwrap().groups.len(),
        2,
        "two are left, and the next step takes two"
    );
    ledger.publish(1, 1);
    feed(&mut ledger, 1);
    for (round, id) in [(2, "2.1"), (3, "3.0"), (3, "3.1")] {
        assert!(ledger.arrive(round, id, group("younger", round / 3)));
        assert!(ledger.take(2).is_none(), "1.0 would be too old for step 3");
    }
    assert!(ledger.arrive(1, "1.0", group("old", 0)));
    assert_eq!(rows(&ledger.take(2).unwrap()), [(Fate::Kept, "old"), (Fate::Kept, "younger")]);
    ledger.publish(2, 2);
    assert_eq!(ledger.take(3).unwrap().groups.len(), 2);
    // Three steps ahead a whole step's groups can be too late together.
    let mut ledger = begun(Rule { waits: true, ..rule(2) });
    feed(&mut ledger, 0);
    for id in ["1.0", "1.1"] {
        assert!(ledger.arrive(1, id, group("a", 0)));
    }
    assert!(ledger.take(1).is_some());
    ledger.publish(1, 1);
    feed(&mut ledger, 1);
    for id in ["4.0", "4.1"] {
        assert!(ledger.arrive(4, id, group("b", 1)));
    }
    assert!(ledger.take(2).is_none(), "four of the first weights are left, and step 3 takes two");
    for id in ["3.0", "3.1"] {
        assert!(ledger.arrive(3, id, group("c", 0)));
    }
    assert_eq!(rows(&ledger.take(2).unwrap()), [(Fate::Kept, "c"), (Fate::Kept, "c")]);
}

#[test]
fn weights_that_a_step_leaves_as_they_are_make_nothing_older() {
    let mut ledger = begun(rule(1));
    for step in 1..5 {
        ledger.publish(0, step);
    }
    assert_eq!(ledger.age(0, 4), Some(0));
}

#[test]
fn groups_without_spread_wait_for_others_as_often_as_the_stage_says() {
    let mut ledger = begun(Rule { resample_rounds: 1, ..rule(1) });
    feed(&mut ledger, 0);
    assert!(ledger.arrive(1, "1.0", flat("a")));
    assert!(ledger.arrive(1, "1.1", group("b", 0)));
    assert!(ledger.take(1).is_none());
    assert_eq!(feed(&mut ledger, 0), [0_u64; 0], "three have begun, and a round has two");
    assert!(ledger.arrive(2, "2.0", flat("c")));
    assert!(ledger.take(1).is_none());
    assert_eq!(feed(&mut ledger, 0), [3]);
    assert!(ledger.arrive(2, "2.1", flat("d")));
    assert_eq!(feed(&mut ledger, 0), [0_u64; 0], "the step takes what it has");
    let taken = ledger.take(1).unwrap();
    let fates: Vec<Fate> = taken.groups.iter().map(|(fate, _)| *fate).collect();
    assert_eq!(fates, [Fate::NoSignal, Fate::Kept, Fate::NoSignal, Fate::NoSignal]);
}

#[test]
fn the_last_step_leaves_nothing_behind() {
    let mut ledger = begun(Rule { steps: 1, resample_rounds: 3, ..rule(4) });
    feed(&mut ledger, 0);
    assert!(ledger.arrive(1, "1.0", flat("a")));
    assert_eq!(feed(&mut ledger, 0), [2]);
    assert!(ledger.arrive(1, "1.1", group("b", 0)));
    assert!(ledger.arrive(2, "2.1", group("d", 0)));
    assert!(ledger.take(1).is_none(), "2.0 is on its way");
    assert!(ledger.arrive(2, "2.0", group("c", 0)));
    let taken = ledger.take(1).unwrap();
    let wanted = [(Fate::NoSignal, "a"), (Fate::Kept, "b"), (Fate::Kept, "c"), (Fate::Unused, "d")];
    assert_eq!(rows(&taken), wanted);
}

#[test]
fn a_prompt_that_fails_has_its_place_in_a_step() {
    let mut ledger = begun(rule(1));
    feed(&mut ledger, 0);
    assert!(ledger.arrive(1, "1.1", Err("no good".to_owned())));
    assert!(ledger.take(1).is_none());
    assert!(ledger.arrive(2, "2.0", group("c", 0)));
    let taken = ledger.take(1).unwrap();
    assert_eq!(rows(&taken), [(Fate::Kept, "c")]);
    assert_eq!(taken.failed, [("1.1".to_owned(), "no good".to_owned())]);
}

#[test]
fn where_no_prompts_are_left_a_step_takes_what_there_is() {
    let mut ledger = begun(rule(1));
    assert_eq!(ledger.next_round(0), Some(1));
    ledger.fed(1, vec!["1.0".to_owned()]);
    assert_eq!(ledger.next_round(0), Some(2));
    ledger.fed(2, Vec::new());
    assert_eq!(ledger.next_round(0), None);
    assert!(ledger.take(1).is_none(), "one is on its way");
    assert!(ledger.arrive(1, "1.0", group("a", 0)));
    assert_eq!(rows(&ledger.take(1).unwrap()), [(Fate::Kept, "a")]);
    ledger.publish(1, 1);
    assert_eq!(ledger.next_round(1), Some(3), "perhaps there are some again");
}

#[test]
fn what_no_step_has_taken_is_asked_for_again() {
    let mut ledger = begun(rule(2));
    feed(&mut ledger, 0);
    for (round, id) in [(1, "1.0"), (1, "1.1"), (2, "2.1"), (3, "3.0")] {
        assert!(ledger.arrive(round, id, group("x", 0)));
    }
    ledger.take(1).unwrap();
    ledger.publish(1, 1);
    assert_eq!(ledger.next_round(1), Some(4));
    // Those on the left are gone: what has arrived is here.
    let again = [
        Again::Prompts(2, vec!["2.0".to_owned()]),
        Again::Prompts(3, vec!["3.1".to_owned()]),
        Again::Round(4),
    ];
    assert_eq!(ledger.again(), again);
    // The process is gone, and what had arrived with it.
    let asked = ledger.asked();
    assert_eq!(asked.rounds, 3);
    let mut resumed: Ledger<&str> = Ledger::new(rule(2), asked, 1);
    resumed.publish(1, 1);
    assert_eq!(resumed.again(), [Again::Prompts(2, ids(2)), Again::Prompts(3, ids(3))]);
    assert_eq!(resumed.next_round(1), Some(4));
    assert_eq!(resumed.prompt_ids().count(), 4);
}
