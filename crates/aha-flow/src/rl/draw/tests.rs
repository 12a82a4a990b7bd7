//! Draws of prompts, without a run.

use aha_reward::NoBackends;

use super::*;
use crate::pipeline::{OnNull, StageKind, Text, parse};

/// Twelve problems, `p0` to `p11`: eight sums and four of another source.
fn problems() -> Vec<Problem> {
    let problem = |i: usize| Problem {
        id: format!("p{i}"),
        prompt: format!("{i}+1="),
        answer: Some((i + 1).to_string()),
        source: Some(if i < 8 { "sums" } else { "chat" }.to_owned()),
        tests: None,
        rating: None,
        pass_rate: None,
    };
    (0..12).map(problem).collect()
}

fn settings(keys: &str) -> RlStage {
    let per_step = if keys.contains("prompts_per_step") { "" } else { "prompts_per_step = 4" };
    let text = format!(
        "[models]\nbase = 'base'\n[[stage]]\nname = 'zero'\nkind = 'rl'\nmodel = 'base'\n\
         prompts = 'SELECT 1'\n{per_step}\n{keys}\n\
         rewards = [{{ kind = 'math' }}, {{ kind = 'format', sources = ['chat'] }}]\n"
    );
    let pipeline = parse(Text { path: "p.toml", text: &text, sets: &[] });
    let pipeline = pipeline.unwrap_or_else(|problems| panic!("{problems}"));
    match &pipeline.stages[0].kind {
        StageKind::Rl(rl) => (**rl).clone(),
        _ => panic!("an rl stage"),
    }
}

fn new(keys: &str, problems: &[Problem]) -> Result<Option<Draw>> {
    let settings = settings(keys);
    let specs: Vec<_> = settings.rewards.iter().map(|reward| reward.0.clone()).collect();
    let scorer = Scorer::new(&specs, OnNull::Drop, None, &NoBackends).unwrap();
    Draw::new(&settings, problems, &scorer, Philox::new(7))
}

fn draw(keys: &str) -> Draw {
    new(keys, &problems()).unwrap().unwrap()
}

fn message(keys: &str, problems: &[Problem]) -> String {
    new(keys, problems).err().unwrap().to_string()
}

/// What a step measures: of each problem the same share.
fn measured(problems: &[usize], pass_share: Option<f64>) -> Vec<Measured> {
    problems.iter().map(|&problem| Measured { problem, pass_share }).collect()
}

/// Steps in which nothing is measured: the problems of each.
fn steps(draw: &Draw, count: u64) -> Vec<Vec<usize>> {
    let mut seen = draw.begin(&problems(), &BTreeMap::new());
    let step = |step| {
        let chosen = draw.choose(&seen, step, &BTreeSet::new(), None);
        draw.update(&mut seen, step, &measured(&chosen, None));
        chosen
    };
    (1..=count).map(step).collect()
}

fn distinct(chosen: &[usize]) -> usize {
    chosen.iter().collect::<HashSet<_>>().len()
}

#[test]
fn without_weights_and_curriculum_there_is_nothing_to_decide() {
    assert!(new("", &problems()).unwrap().is_none());
}

/// Goal: counts add up, are within one of their shares, and are exact on average. Method: starts on a grid, over which
/// a mean is the share but for the grid's step; shares that no binary fraction holds.
#[test]
fn shares_are_exact_on_average_and_to_a_prompt_in_each_step() {
    for shares in [vec![3.0, 1.0], vec![0.1, 0.2, 0.7], vec![1.0], vec![1e-9, 1.0, 1.0]] {
        let (count, grid) = (7, 10_000);
        let total: f64 = shares.iter().sum();
        let mut sums = vec![0; shares.len()];
        for start in 0..grid {
            let counts =
                systematic(shares.iter().copied(), count, f64::from(start) / f64::from(grid));
            assert_eq!(counts.iter().sum::<usize>(), count);
            for (idx, found) in counts.iter().enumerate() {
                let want = shares[idx] / total * count as f64;
                assert!((*found as f64 - want).abs() < 1.0 + 1e-9, "{found} of {want}");
                sums[idx] += found;
            }
        }
        for (sum, share) in sums.iter().zip(&shares) {
            let mean = *sum as f64 / f64::from(grid);
            assert!((mean - share / total * count as f64).abs() < 2e-4, "{mean}");
        }
    }
}

#[test]
fn each_source_has_its_share_and_rounds_of_its_own() {
    let draw = draw("source_weights = { sums = 3, chat = 1 }");
    let steps = steps(&draw, 16);
    let mut asked = [0; 12];
    for chosen in &steps {
        assert_eq!((chosen.len(), distinct(chosen)), (4, 4));
        assert_eq!(chosen.iter().filter(|idx| **idx >= 8).count(), 1);
        for &idx in chosen {
            asked[idx] += 1;
            let source = if idx < 8 { 0..8 } else { 8..12 };
            let of_source = &asked[source];
            let spread = of_source.iter().max().unwrap() - of_source.iter().min().unwrap();
            assert!(spread <= 1, "{asked:?}");
        }
    }
    assert_eq!(asked, [[6; 8].as_slice(), &[4; 4]].concat()[..]);
    // Rounds have orders of their own, drawn from the seed.
    let of_chat: Vec<usize> = steps.iter().map(|chosen| chosen[0]).collect();
    let rounds: Vec<&[usize]> = of_chat.chunks(4).collect();
    assert!(rounds.iter().any(|round| round != &rounds[0]), "{rounds:?}");
    let keys = "source_weights = { sums = 3, chat = 1 }\nshuffle = false";
    let in_order = self::steps(&self::draw(keys), 4);
    assert_eq!(in_order, [[8, 0, 1, 2], [9, 3, 4, 5], [10, 6, 7, 0], [11, 1, 2, 3]]);
}

#[test]
fn problems_that_do_not_fit_the_weights_are_refused() {
    let all = problems();
    let lacking = message("source_weights = { chat = 1 }", &all);
    assert!(lacking.contains("`p0` is from `sums`, which has no weight"), "{lacking}");
    let mut nowhere = problems();
    nowhere[3].source = None;
    let keys = "source_weights = { sums = 3, chat = 1 }";
    assert!(message(keys, &nowhere).contains("`p3` is from no source"));
    let few = message(keys, &all[..8]);
    assert!(few.contains("up to 1 prompts from `chat`, but the query finds 0"), "{few}");
    let few = message("source_weights = { sums = 1, chat = 9 }\nprompts_per_step = 5", &all);
    assert!(few.contains("up to 5 prompts from `chat`, but the query finds 4"), "{few}");
    let mut rated = problems();
    for rate in [1.5, -0.1, f64::NAN] {
        rated[2].pass_rate = Some(rate);
        assert!(message("curriculum = {}", &rated).contains("`p2` has the `pass_rate`"));
    }
}

/// A curriculum over all problems without revisits, and rates for them from the query.
fn rated(keys: &str, rate: impl Fn(usize) -> Option<f64>) -> (Draw, Vec<Seen>) {
    let mut problems = problems();
    for (idx, problem) in problems.iter_mut().enumerate() {
        problem.pass_rate = rate(idx);
    }
    let draw = new(keys, &problems).unwrap().unwrap();
    let seen = draw.begin(&problems, &BTreeMap::new());
    (draw, seen)
}

fn sorted(mut chosen: Vec<usize>) -> Vec<usize> {
    chosen.sort_unstable();
    chosen
}

#[test]
fn prompts_come_from_the_band_and_from_near_it_where_it_has_too_few() {
    let rate = |idx| Some(idx as f64 / 10.0);
    let choose = |keys: &str| {
        let (draw, seen) = rated(keys, |idx| if idx < 11 { rate(idx) } else { Some(1.0) });
        sorted(draw.choose(&seen, 1, &BTreeSet::new(), None))
    };
    assert_eq!(choose("curriculum = { band = [0.35, 0.75], revisit_share = 0 }"), [4, 5, 6, 7]);
    assert_eq!(choose("curriculum = { band = [0.0, 0.3], revisit_share = 0 }"), [0, 1, 2, 3]);
    // Bounds belong to the band.
    assert_eq!(choose("curriculum = { band = [0.4, 0.7], revisit_share = 0 }"), [4, 5, 6, 7]);
    assert_eq!(choose("curriculum = { band = [0.5, 0.6], revisit_share = 0 }"), [4, 5, 6, 7]);
    // What isn't known has the prior.
    let prior = |prior: f64| {
        let keys = format!("curriculum = {{ prior = {prior:?}, revisit_share = 0 }}");
        let (draw, seen) = rated(&keys, |idx| (idx < 4).then_some(0.5));
        sorted(draw.choose(&seen, 1, &BTreeSet::new(), None))
    };
    assert_eq!(prior(0.1), [0, 1, 2, 3]);
    assert_ne!(prior(0.3), [0, 1, 2, 3]);
}

#[test]
fn prompts_outside_the_band_come_back_the_longest_wait_first() {
    // Half of a step's prompts: two a step.
    let keys = "curriculum = { revisit_share = 0.5 }";
    let (draw, mut seen) = rated(keys, |idx| Some(if idx < 6 { 0.5 } else { 0.0 }));
    let mut waits: Vec<Vec<usize>> = Vec::new();
    for step in 1..=6 {
        let chosen = draw.choose(&seen, step, &BTreeSet::new(), None);
        assert_eq!(distinct(&chosen), 4);
        waits.push(sorted(chosen.iter().copied().filter(|idx| *idx >= 6).collect()));
        draw.update(&mut seen, step, &measured(&chosen, None));
    }
    assert!(waits.iter().all(|outside| outside.len() == 2), "{waits:?}");
    assert_eq!(sorted(waits[..3].concat()), [6, 7, 8, 9, 10, 11]);
    assert_eq!(waits[..3], waits[3..]);
    // A share of less than a prompt is exact on average.
    let (draw, seen) =
        rated("curriculum = { revisit_share = 0.1 }", |idx| Some(if idx < 6 { 0.5 } else { 0.0 }));
    let count = (1..=2000).map(|step| {
        let chosen = draw.choose(&seen, step, &BTreeSet::new(), None);
        chosen.iter().filter(|idx| **idx >= 6).count()
    });
    let mean = count.sum::<usize>() as f64 / 2000.0;
    assert!((mean - 0.4).abs() < 0.05, "{mean}");
}

#[test]
fn rates_are_followed_by_the_formula_and_a_prompt_that_comes_back_joins_the_round() {
    for momentum in [0.0, 0.5, 0.9] {
        let keys = format!("curriculum = {{ momentum = {momentum:?}, prior = 0.4 }}");
        let (draw, mut seen) = rated(&keys, |idx| (idx == 0).then_some(0.8));
        let (mut first, mut other): (f64, f64) = (0.8, 0.4);
        for (step, share) in [(1, 1.0), (2, 0.25), (3, 0.0)] {
            draw.update(&mut seen, step, &measured(&[0, 5], Some(share)));
            first = momentum * first + (1.0 - momentum) * share;
            other = momentum * other + (1.0 - momentum) * share;
            assert!((seen[0].pass_rate - first).abs() < 1e-15);
            assert!((seen[5].pass_rate - other).abs() < 1e-15);
            assert_eq!((seen[0].step, seen[1].step), (step, 0));
        }
        // Without a share the rate stays, and it was asked all the same.
        let before = seen[5];
        draw.update(&mut seen, 9, &measured(&[5], None));
        assert_eq!(seen[5], Seen { round: before.round + 1, step: 9, ..before });
    }
    // `p11` was outside while the others were asked five times: it is asked once in the next round, as they are.
    let (draw, mut seen) = rated("curriculum = { revisit_share = 0 }", |_| None);
    seen[..11].iter_mut().for_each(|seen| seen.round = 5);
    seen[0].round = 4;
    let chosen = draw.choose(&seen, 6, &BTreeSet::new(), None);
    assert!(chosen.contains(&0) && chosen.contains(&11), "{chosen:?}");
    draw.update(&mut seen, 6, &measured(&chosen, Some(0.5)));
    assert_eq!((seen[0].round, seen[11].round), (5, 5));
    let rounds: Vec<u64> = chosen.iter().map(|&idx| seen[idx].round).collect();
    assert_eq!(rounds.iter().filter(|round| **round == 6).count(), 2);
}

#[test]
fn sources_that_no_reward_of_the_curriculum_is_for_are_all_drawn() {
    let keys = "curriculum = { rewards = ['format'], revisit_share = 0 }";
    let (draw, seen) = rated(keys, |_| Some(0.0));
    assert!(draw.pass_parts[..8].iter().all(Option::is_none));
    assert!(draw.pass_parts[8..].iter().all(|part| *part == Some(1)));
    let chosen = draw.choose(&seen, 1, &BTreeSet::new(), None);
    assert!(chosen.iter().all(|idx| *idx < 8), "{chosen:?}");
    // By default the reward that compares with the answer says it, for all.
    assert!(self::draw("curriculum = {}").pass_parts.iter().all(|part| *part == Some(0)));
}

#[test]
fn others_come_from_the_same_source_from_its_band_first_and_never_twice() {
    let keys = "source_weights = { sums = 1, chat = 1 }\ncurriculum = { revisit_share = 1 }";
    // Of each source the last two are in the band.
    let (draw, seen) =
        rated(keys, |idx| Some(if [6, 7, 10, 11].contains(&idx) { 0.5 } else { 0.0 }));
    let names = |chosen: &[usize]| chosen.iter().map(|idx| format!("p{idx}")).collect::<Vec<_>>();
    let first = draw.choose(&seen, 1, &BTreeSet::new(), None);
    assert_eq!(first.iter().filter(|idx| **idx >= 8).count(), 2);
    // The revisits were for all of it, so the band is still free.
    let kept = first.iter().copied().filter(|idx| *idx >= 8).take(1).collect::<Vec<_>>();
    let refill = Refill { asked: 0, count: 3, asked_ids: names(&first), kept_ids: names(&kept) };
    let second = draw.choose(&seen, 1, &BTreeSet::new(), Some(&refill));
    assert_eq!(sorted(second[1..].to_vec()), [6, 7]);
    assert!([10, 11].contains(&second[0]), "{second:?}");
    let asked_ids = names(&[first, second].concat());
    let refill = Refill { asked: 3, count: 3, asked_ids, ..refill };
    let third = draw.choose(&seen, 1, &BTreeSet::new(), Some(&refill));
    assert!(third.iter().all(|idx| !refill.asked_ids.contains(&format!("p{idx}"))));
    assert_eq!(third.iter().filter(|idx| **idx >= 8).count(), 1);
    // Of the sums, two were asked and came back, two came for them: four are left, and two are wanted.
    assert_eq!(third.len(), 3);
}

#[test]
fn prompts_that_are_set_aside_are_not_drawn() {
    let draw = draw("source_weights = { sums = 3, chat = 1 }");
    let seen = draw.begin(&problems(), &BTreeMap::new());
    let set_aside: BTreeSet<String> = (0..6).map(|idx| format!("p{idx}")).collect();
    for step in 1..=20 {
        let chosen = draw.choose(&seen, step, &set_aside, None);
        assert_eq!(sorted(chosen[1..].to_vec()), [6, 7]);
    }
}

#[test]
fn what_is_known_goes_through_a_checkpoint() {
    let (draw, mut seen) = rated("curriculum = {}", |_| None);
    draw.update(&mut seen, 3, &measured(&[1, 4], Some(1.0 / 3.0)));
    let saved = draw.saved(&problems(), &seen);
    assert_eq!(saved.keys().collect::<Vec<_>>(), ["p1", "p4"]);
    let text = serde_json::to_string(&saved).unwrap();
    let read: BTreeMap<String, Seen> = serde_json::from_str(&text).unwrap();
    assert_eq!(draw.begin(&problems(), &read), seen);
}
