//! A model's Elo rating from the ratings of the problems that it met, as Codeforces rates its problems.
//!
//! A problem of rating r counts as one game against an opponent of that rating. A player of rating R wins it
//! with the probability `p = 1 / (1 + 10^((r - R) / 400))` (Elo 1978, on the logistic curve; Mirzayanov,
//! "Codeforces rating system", 2010, has the same). With s the share of a problem's samples that are right,
//! the likelihood `prod p^s (1 - p)^(1 - s)` is largest where `sum p = sum s`: one equation, whose left side
//! grows with R. The Fisher information is `(ln 10 / 400)^2 sum p (1 - p)`, and the standard error one over
//! its root: that of one game per problem, however many samples there are, since samples of one problem
//! don't say how the model does on another.
//!
//! Who wins every game, or none, has no largest likelihood. So `sum s` is kept between 1/2 and n - 1/2: as if
//! at least half a problem had been solved, and half a problem missed.

/// Points at which the odds are ten to one.
const SCALE: f64 = 400.0;
/// Further than this from the problems no rating is looked for: the odds are 10^10 to one.
const REACH: f64 = 10.0 * SCALE;
/// Halvings of an interval of less than 2^14 points: what is left is below the precision of the sums.
const HALVINGS: usize = 64;

/// A rating and its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rating {
    /// The rating of the largest likelihood.
    pub rating: f64,
    /// Its standard error.
    pub se: f64,
}

/// One problem that the model met.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Game {
    /// The problem's rating.
    pub problem_rating: f64,
    /// Share of its samples that are right.
    pub solved_share: f64,
}

/// The rating of who played these games; none where there are none, or where one's rating is no number.
pub fn rating(games: &[Game]) -> Option<Rating> {
    let ratings = games.iter().map(|game| game.problem_rating);
    if games.is_empty() || !ratings.clone().all(f64::is_finite) {
        return None;
    }
    let chances = |rating: f64| ratings.clone().map(move |problem| chance(rating, problem));
    let solved: f64 = games.iter().map(|game| game.solved_share).sum();
    let solved = solved.clamp(0.5, games.len() as f64 - 0.5);
    let (mut low, mut high) = (
        ratings.clone().fold(f64::INFINITY, f64::min) - REACH,
        ratings.clone().fold(f64::NEG_INFINITY, f64::max) + REACH,
    );
    for _ in 0..HALVINGS {
        let middle = (low + high) / 2.0;
        let expected: f64 = chances(middle).sum();
        if expected < solved { low = middle } else { high = middle }
    }
    let rating = (low + high) / 2.0;
    let information: f64 = chances(rating).map(|p| p * (1.0 - p)).sum();
    let per_point = std::f64::consts::LN_10 / SCALE;
    Some(Rating { rating, se: 1.0 / (per_point * information.sqrt()) })
}

/// The probability that a player solves a problem.
fn chance(rating: f64, problem_rating: f64) -> f64 {
    1.0 / (1.0 + 10.0_f64.powf((problem_rating - rating) / SCALE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn games(pairs: &[(f64, f64)]) -> Vec<Game> {
        let game = |&(problem_rating, solved_share)| Game { problem_rating, solved_share };
        pairs.iter().map(game).collect()
    }

    #[track_caller]
    fn assert_rating(pairs: &[(f64, f64)], expected: f64, expected_se: f64) {
        let found = rating(&games(pairs)).unwrap();
        assert!((found.rating - expected).abs() < 1e-6, "{found:?} is not {expected}");
        assert!((found.se - expected_se).abs() < 1e-6, "{found:?} has not {expected_se}");
    }

    /// The standard error of one piece of information: 400 / ln 10.
    const UNIT: f64 = SCALE / std::f64::consts::LN_10;

    #[test]
    fn ratings_are_those_worked_out_by_hand() {
        // Half of the games at 1500: p = 1/2, information 4 * 1/4, so the error is one unit.
        assert_rating(&[(1500.0, 1.0), (1500.0, 0.0), (1500.0, 0.5), (1500.0, 0.5)], 1500.0, UNIT);
        // Ten of eleven: odds of ten to one, 400 points above; p (1 - p) = 10 / 121, eleven times.
        let mut eleven = vec![(1000.0, 1.0); 10];
        eleven.push((1000.0, 0.0));
        assert_rating(&eleven, 1400.0, UNIT * (11.0_f64 / 10.0).sqrt());
        // One easy problem solved, one hard one missed: half way between, p = 10/11 and 1/11.
        assert_rating(&[(800.0, 1.0), (1600.0, 0.0)], 1200.0, UNIT * (121.0_f64 / 20.0).sqrt());
    }

    #[test]
    fn who_solves_all_or_none_counts_as_half_a_problem_short_of_it() {
        // 3/4 of 2 problems: sum s = 1.5, odds of three to one.
        let above = SCALE * 3.0_f64.log10();
        let se = UNIT * (8.0_f64 / 3.0).sqrt();
        assert_rating(&[(1500.0, 1.0), (1500.0, 1.0)], 1500.0 + above, se);
        assert_rating(&[(1500.0, 0.0), (1500.0, 0.0)], 1500.0 - above, se);
        // Less than half of the least is no better: more solved never means a lower rating.
        assert_rating(&[(1500.0, 0.1), (1500.0, 0.0)], 1500.0 - above, se);
        assert_rating(&[(1500.0, 1.0)], 1500.0, 2.0 * UNIT);
        assert_eq!(rating(&[]), None);
        assert_eq!(rating(&games(&[(f64::NAN, 1.0)])), None);
    }

    #[test]
    fn an_expert_of_two_thousand_problems_is_found_again() {
        let pairs: Vec<(f64, f64)> = (0..2000)
            .map(|i| {
                let problem = 800.0 + f64::from(i % 27) * 100.0;
                (problem, chance(1873.0, problem))
            })
            .collect();
        let found = rating(&games(&pairs)).unwrap();
        assert!((found.rating - 1873.0).abs() < 1e-6, "{found:?}");
    }
}
