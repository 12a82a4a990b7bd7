//! Tables of answers, hostile answers, and properties on generated ones.

use super::*;

/// Checks `gold | pred` pairs, a line each.
pub(super) fn check(table: &str, want: bool) -> usize {
    let mut wrong = Vec::new();
    let mut case_count = 0;
    for line in table.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (gold, pred) = line.split_once(" | ").unwrap();
        case_count += 1;
        if math_equal(gold.trim(), pred.trim()) != want {
            wrong.push(line);
        }
    }
    assert!(wrong.is_empty(), "must {}be equal: {wrong:#?}", if want { "" } else { "not " });
    case_count
}

#[test]
fn whole_numbers() {
    let equal = r"
        5 | 5
        5 | 5.
        5 | +5
        -5 | -5
        -5 | − 5
        5 | --5
        0 | -0
        7 | 007
        5 | 5.0
        5 | $5$
        5 | \(5\)
        5 | \[ 5 \]
        5 | **5**
        5 | {5}
        5 | (5)
        5 | \boxed{5}
        123456789012345678901234567890 | 123456789012345678901234567890.0
        1234 | 1,234
        1234567 | 1,234,567
        1,234 | 1{,}234
        1234 | 1\,234
        10,\!080 | 10080
        11,\! 111,\! 111,\! 100 | 11111111100
        1000000 | 1 million
        36 | 3 dozen
    ";
    let different = r"
        5 | 6
        5 | -5
        5 | 55
        12 | 1 2
        1234 | 1,23
        123456789012345678901234567890 | 123456789012345678901234567891
        5 | five hundred
        5 | 5 million
        5 | 5x
        5 | x
    ";
    assert_eq!((check(equal, true), check(different, false)), (25, 10));
}

#[test]
fn decimals_and_fractions() {
    let equal = r"
        0.5 | .5
        0.5 | 0.50
        0.5 | 1/2
        1/2 | \frac{1}{2}
        \frac12 | \dfrac{1}{2}
        \frac{1}{2} | \tfrac 12
        \frac 59 | 5/9
        \frac9{19} | 9/19
        \frac{3}{6} | 1/2
        -\frac{1}{2} | \frac{-1}{2}
        -\frac{1}{2} | \frac{1}{-2}
        -1/2 | -0.5
        \frac{270}7 | 270/7
        1 1/2 | 3/2
        1\frac12 | 1.5
        1 \frac{1}{2} | \frac{3}{2}
        -1\frac{1}{2} | -1.5
        2½ | 2.5
        \frac{\frac{1}{2}}{3} | 1/6
        1/2/2 | 1/4
        0.\overline{3} | 1/3
        0.1\overline{6} | 1/6
        1/3 | 0.333333
        0.333333 | 1/3
        2/3 | 0.66666667
        .0000672 | 6.72e-5
        3.21 | 3.210
        \frac{0.5}{2} | 0.25
    ";
    let different = r"
        1/3 | 0.33
        1/3 | 0.33333
        2/3 | 0.666666
        1/2 | 2/1
        11/2 | 1 1/2
        1 1/2 | 1/2
        0.0000001 | 0
        0.0000001 | 0.000000
        1/2 | 1/0
        1/0 | 2/0
        0.1 | 0.10000001
        1 3/2 | 5/2
        3.14 | 3.1.4
    ";
    assert_eq!((check(equal, true), check(different, false)), (28, 13));
}

#[test]
fn percent_currency_and_units() {
    let equal = r"
        50\% | 0.5
        0.5 | 50%
        50% | 1/2
        50\% | 50
        50 | 50%
        50 | 50 percent
        \$5 | 5
        5 | \$5.00
        32348 | \$32,\!348
        \$32,\!348 | \$32348
        -\$5 | -5
        5 | €5
        5 | 5 dollars
        5 | 5 apples
        5 | 5\text{ cm}
        5 \text{ cm} | 5
        5 | 5cm
        5 cm | 5 centimeters
        864 \mbox{ inches}^2 | 864
        864 | 864\text{ in}^2
        5.4 \text{ cents} | 5.4
        90^\circ | 90
        90 | 90^{\circ}
        90° | 90 degrees
        \frac{270}7\text{ degrees} | 270/7
        60 | 60 miles per hour
        60 | 60 \text{ miles/hour}
        12 | 12 square units
        5 | 5 \text{ m}
    ";
    let different = r"
        50% | 0.05
        50% | 5
        0.5 | 0.5%
        50% | 0.005
        5 cm | 5 m eters
        5 \text{ cm} | 5 \text{ meters}
        5 cents | 5 dollars
        \$5 | 5 cents
        5 | 5 plus 6
        5 | 5 or so many more apples than I can count
        5 | not 5
        5 | 5 squared
        5 | 5 halves
        12 | 12xy
    ";
    assert_eq!((check(equal, true), check(different, false)), (29, 14));
}

#[test]
fn powers_roots_and_arithmetic() {
    let equal = r"
        1000 | 10^3
        1000 | 1e3
        1000 | 10^{3}
        1000 | 1E+3
        1200 | 1.2 \times 10^3
        1200 | 1.2 × 10^3
        0.0012 | 1.2 \cdot 10^{-3}
        1/8 | 2^{-3}
        512 | 2^{3^2}
        -4 | -2^2
        4 | (-2)^2
        12 | 5+7
        12 | 3*4
        12 | 3 \times 4
        12 | 3 \cdot 4
        12 | 24 \div 2
        12 | 5+7=12
        14 | 2+3*4
        20 | (2+3)*4
        9 | 3**2
        25 | 5²
        3 | \sqrt{9}
        3 | \sqrt9
        2\sqrt{2} | \sqrt{8}
        \frac{\sqrt{3}}{3} | \frac{1}{\sqrt{3}}
        \frac{\sqrt{2}}{2} | \sqrt{1/2}
        \frac{1}{1+\sqrt2} | \sqrt2-1
        11\sqrt2 | \sqrt{242}
        3\sqrt{13} | 3*sqrt(13)
        6 | \sqrt{2}\cdot\sqrt{18}
    ";
    let different = r"
        1000 | 10^4
        \sqrt{2} | 1.41
        \sqrt{2} | \sqrt{3}
        2\sqrt{3} | 3\sqrt{2}
        12 | 5=12
        12 | 5+8=12
        4 | -2^2
        5 | 2+2
        \sqrt{2} | -\sqrt{2}
        0 | 0^{-1}
    ";
    assert_eq!((check(equal, true), check(different, false)), (30, 10));
}

#[test]
fn roots_constants_and_functions() {
    let equal = r"
        2 | \sqrt[3]{8}
        2\sqrt[3]{2} | \sqrt[3]{16}
        8^{1/3} | 2
        \sqrt{5} | 5^{1/2}
        \sqrt{2} | 1.414214
        1+\sqrt2 | \sqrt{3+2\sqrt{2}}
        \sqrt[3]{2}\sqrt[3]{4} | 2
        6 - 5i | -5i+6
        -1 | i^2
        2i | \sqrt{-4}
        120 | 5!
        10 | \binom{5}{2}
        5 | |-5|
        12\pi | 12 \times \pi
        288 \pi | 288π
        \pi | 3.141593
        \frac{20000}{\pi} | 20000/\pi
        18+2\pi | 2(9+\pi)
        \ln 2 | \ln(2)
        \sin 30^\circ | \sin(30^\circ)
        1 | 1^{999999999999}
    ";
    let different = r"
        \pi | 3.14
        \pi | 22/7
        \ln 2 | \ln 3
        \sin 30 | \sin 30^\circ
        \sqrt{x^2} | x
        e | 2.71
        1+\sqrt2 | \sqrt{3+2\sqrt{3}}
    ";
    assert_eq!((check(equal, true), check(different, false)), (21, 7));
}

#[test]
fn lists_sets_and_intervals() {
    let equal = r"
        (1,2) | (1, 2)
        (1,2) | \left( 1, 2 \right)
        (1, 1/2) | (1.0, \frac12)
        1,2 | 2,1
        1, 2 | 1 and 2
        1, 2 | 2 or 1
        3, 5, 7 | 7,5,3
        \{1,2\} | \{2, 1\}
        \{1,2\} | 1,2
        1,2 | (1,2)
        (1,2) | 1,2
        100, 200 | 100,200
        \{5\} | 5
        \left( 3, \frac{\pi}{2} \right) | (3, \pi/2)
        (3,4] | \left(3, 4\right]
        (-\infty, 0] | (-\infty,0]
        (2,\infty) | (2, +\infty)
        (0,9) \cup (9,36) | (9,36)\cup(0,9)
        1 \pm \sqrt{19} | 1+\sqrt{19}, 1-\sqrt{19}
        \pm 2 | 2, -2
        \frac{1\pm\sqrt5}{2} | \frac{1-\sqrt5}{2}, \frac{1+\sqrt5}{2}
        3 \pm 2 \sqrt{2} | 3 \pm \sqrt{8}
        \begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix} | \begin{bmatrix} -\frac13 \\ \frac23 \end{bmatrix}
        \begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix} | \begin{pmatrix}-1&0\\0&-1\\\end{pmatrix}
    ";
    let different = r"
        5 | 5, 6
        5 | 5 or 6
        5 | 6, 5
        5 | 5,5
        5 | (5, 6)
        5 | \{5, 6\}
        5 | 5; 6
        5 | 5 \text{ or } 6
        5 | \pm 5
        5 | 5 apples or 6 apples
        5 | 5 is it, 6 is it not
        (1,2) | (2,1)
        (1,2) | [1,2]
        (1,2] | (1,2)
        1,2 | 1,2,3
        1,2 | 1,1
        1,2 | 1
        (1,2,3) | (1,2)
        \begin{pmatrix} 1 \\ 2 \end{pmatrix} | \begin{pmatrix} 1 & 2 \end{pmatrix}
        (0,9) \cup (9,36) | (0,36)
    ";
    assert_eq!((check(equal, true), check(different, false)), (24, 20));
}

#[test]
fn expressions_and_relations() {
    let equal = r"
        x=5 | 5
        5 | x=5
        x=5 | 5=x
        x = 5 | x=5.0
        f(x) = 2x+1 | 2x+1
        p - q | -q+p
        2k+2 | 2(k+1)
        x^2-1 | (x-1)(x+1)
        x^5 - x^4 + 1 | 1 - x^4 + x^5
        (a+5)(b+2) | ab+2a+5b+10
        \frac{11+9a}{20} | \frac{11}{20}+\frac{9a}{20}
        \frac{x^2-1}{x-1} | x+1
        \frac{1}{x}+\frac{1}{y} | \frac{x+y}{xy}
        \cot x | \cot(x)
        \sqrt{x} | x^{1/2}
        6r^2-4r-24 | 2(3r^2-2r-12)
        5x - 7y + 11z + 4 = 0 | 10x-14y+22z=-8
        y = 2x + 3 | y = 3 + 2x
        x > 5 | 5 < x
        x \ge 5 | x≥5
        1 < x < 2 | 1<x<2
        x \in [-2,7] | [-2,7]
        x = 1, x = 2 | 2, 1
        x=1 \text{ or } x=2 | 1, 2
        x = \pm 2 | 2, -2
        52_8 | 52_{8}
        52_8 | 52
        a_1 + a_2 | a_2 + a_1
        \alpha\beta | \beta \alpha
    ";
    let different = r"
        x=5 | y=5
        x=5 | x=6
        x > 5 | x < 5
        x > 5 | x \ge 5
        x=1, x=2 | y=1, y=2
        p - q | q - p
        x^2-1 | (x-1)^2
        2x | 2X
        52_8 | 52_9
        52_8 | 42
        x=5 | 2x=11
        x + y = 1 | x + y = 2
        x - y > 1 | y - x > -1
        ab | ba c
    ";
    assert_eq!((check(equal, true), check(different, false)), (29, 14));
}

#[test]
fn words() {
    let equal = r"
        \text{Evelyn} | evelyn
        \text{east} | East
        yes | Yes.
        \text{(C)} | C
        (B) | b
        A | \textbf{A}
        New York | new  york
        \begin{cases} 1 & x \end{cases} | \begin{cases} 1 & x \end{cases}
    ";
    let different = r"
        \text{Evelyn} | Eve
        yes | no
        A | B
        on | no
        New York | York
        A | A, B
        A | A or B
        yes | yes and no
        east | 5
        5 | east
    ";
    assert_eq!((check(equal, true), check(different, false)), (8, 10));
}

/// Answers made to be slow. The verdict is that a limit was met, or that they are wrong.
fn hostile() -> Vec<String> {
    let mut answers = large();
    answers.extend(expensive());
    answers.extend(malformed());
    answers
}

fn repeated(text: &str, count: usize) -> String {
    text.repeat(count)
}

fn large() -> Vec<String> {
    vec![
        "9^9^9".to_owned(),
        "9^{9^{9^{9}}}".to_owned(),
        "2^{-99999999999}".to_owned(),
        "1e999999999".to_owned(),
        "1e-999999999".to_owned(),
        "10^{10^{10}}".to_owned(),
        "1000!!!!".to_owned(),
        "999999999!".to_owned(),
        repeated("{", 10_000),
        repeated("(", 4_000),
        format!("{}5{}", repeated("(", 2_000), repeated(")", 2_000)),
        format!("{}5{}", repeated("\\sqrt{", 1_000), repeated("}", 1_000)),
        format!("{}5{}", repeated("\\frac{1}{", 800), repeated("}", 800)),
        format!("{}5{}", repeated("1\\frac{", 60), repeated("}{2}", 60)),
        repeated("\\boxed{", 10_000),
        repeated("\\frac", 1_600),
        repeated("9", 1_000_000),
        repeated("9", 8_000),
        format!("0.{}", repeated("3", 8_000)),
        format!("1/{}", repeated("7", 4_000)),
    ]
}

fn expensive() -> Vec<String> {
    vec![
        format!("{}1", repeated("1/7+", 2_000)),
        format!("{}1", repeated("12345678901/12345678907*", 330)),
        format!("{}5", repeated("-", 8_001)),
        format!("5{}", repeated("!", 8_000)),
        format!("2{}", repeated("^2", 4_000)),
        format!("(a+b+c+d+e+f+g)^{{{}}}", 60),
        format!("{}(a+b)", repeated("(x+y+z)^{9}", 40)),
        format!("{}1", repeated("\\sqrt{18446744073709551557}+", 300)),
        format!("{}1", repeated("\\sqrt{1152921504606846883}*", 300)),
        (0..400).map(|n| format!("\\sqrt{{{}}}+", 1_000_003 + n)).collect::<String>() + "1",
        (2..60).map(|n| format!("(1+\\sqrt{{{n}}})")).collect(),
        (0..500).map(|n| format!("x_{{{n}}}")).collect(),
        (0..500).map(|n| format!("(1+x_{{{n}}})")).collect(),
        format!("{}1", repeated("\\sqrt{(x+1)^{60}}", 400)),
        format!("7^{{1/{}}}", 9_999),
        "7^{1/99999999999}".to_owned(),
        "x^{9999}x^{9999}".to_owned(),
        "(x^{1/9999})^{1/9998}".to_owned(),
        format!("{}x{}", repeated("e^{", 60), repeated("}", 60)),
        format!("{}x{}", repeated("\\sin(", 60), repeated(")", 60)),
        format!("{}x", repeated("\\ln(x+y)\\cdot", 500)),
        format!("{}x", repeated("\\arctan(\\sqrt{x})+", 400)),
        format!("{}x", repeated("x^{\\sqrt2}+", 700)),
        (0..200).map(|n| format!("({n},{n}.5)\\cup")).collect::<String>() + "(1,2)",
        (0..200).map(|n| format!("(\\sqrt{{{n}}},\\ln{n})\\cap")).collect::<String>() + "(1,2)",
        (0..200).map(|n| format!("x<{n},")).collect::<String>() + "x>1",
        format!("({})\\begin{{pmatrix}}1&2\\\\3&4\\end{{pmatrix}}", repeated("1+", 2_000) + "1"),
        format!("{}1{}", repeated("\\binom{n}{", 60), repeated("}", 60)),
    ]
}

fn malformed() -> Vec<String> {
    vec![
        repeated("1,", 4_000),
        repeated("1,234", 1_600),
        repeated("1,234,", 1_300),
        (0..250).map(|n| format!("\\sqrt{{{n}}}+\\sqrt{{2+\\sqrt3}},")).collect::<String>() + "1",
        format!("\\begin{{pmatrix}}{}\\end{{pmatrix}}", repeated("1&", 4_000)),
        format!("\\begin{{pmatrix}}{}\\end{{pmatrix}}", repeated("1\\\\", 2_500)),
        repeated("x=", 4_000),
        repeated("\\pm 1,", 1_000),
        repeated("\\sin", 2_000),
        repeated("\\log_", 1_600),
        repeated("x_", 4_000),
        repeated("\\text{", 1_300),
        repeated("é\u{301}", 2_000),
        "\\".to_owned(),
        "\\begin{".to_owned(),
        "1_".to_owned(),
        "1_{99999999999}".to_owned(),
        "z".repeat(10) + "_36",
        "\u{0}\u{feff}\u{202e}5".to_owned(),
    ]
}

#[test]
fn hostile_answers_get_a_verdict() {
    for answer in hostile() {
        for gold in ["5", "x+1", "1, 2", "\\sqrt{2}"] {
            assert!(!math_equal(gold, &answer), "{gold} {}", excerpt(&answer));
        }
        // As gold too, and against itself: the same text is the same answer, however large.
        compare(&answer, "5", ROUNDING_PLACES);
        assert!(math_equal(&answer, &answer), "{}", excerpt(&answer));
    }
}

#[test]
fn limits_are_named() {
    let too_large = |pred: &str| match compare("5", pred, ROUNDING_PLACES) {
        Outcome::TooLarge(what) => what,
        other => panic!("{} is {other:?}", excerpt(pred)),
    };
    assert_eq!(too_large("9^9^9"), "a number of more than 16384 bits");
    assert_eq!(too_large("1e999999999"), "a number of more than 16384 bits");
    assert_eq!(too_large("7^{10^{30}}"), "an exponent");
    assert_eq!(too_large(&"9".repeat(1_000_000)), "longer than 8192 bytes");
    assert_eq!(too_large(&"(".repeat(100)), "nested deeper than 64");
    assert_eq!(too_large(&"1,".repeat(400)), "more than 256 items");
    assert_eq!(too_large("9999!"), "the argument of a factorial");
    assert_eq!(too_large("(1+x)^{65}"), "an exponent");
    let sums: String = (0..10).map(|n| format!("(1+x_{n})")).collect();
    assert_eq!(too_large(&sums), "more than 512 terms");
    let fractions = "12345678901/12345678907*".repeat(330) + "1";
    assert_eq!(too_large(&fractions), "takes too much work");
    assert_eq!(compare("9^9^9", "5", 6), Outcome::GoldTooLarge("a number of more than 16384 bits"));
}

#[test]
fn long_whole_numbers_are_compared_exactly() {
    let digits = "123456789".repeat(800);
    assert!(math_equal(&digits, &format!("+{digits}")));
    assert!(!math_equal(&digits, &format!("{digits}0")));
    assert!(!math_equal(&digits, &format!("1{}", &digits[1..digits.len() - 1])));
}

/// A small generator of numbers with a period of 2^64: the same cases in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn number(&mut self) -> String {
        let (a, b) = (self.below(2000), 1 + self.below(60));
        match self.below(7) {
            0 => a.to_string(),
            1 => format!("-{a}"),
            2 => format!("{a}.{b}"),
            3 => format!("\\frac{{{a}}}{{{b}}}"),
            4 => format!("{a}\\%"),
            5 => format!("{b}\\sqrt{{{a}}}"),
            _ => format!("\\frac{{{a}}}{{{b}}}\\cdot {b}"),
        }
    }

    fn expression(&mut self, depth: u32) -> String {
        if depth == 0 {
            return match self.below(3) {
                0 => "x".to_owned(),
                1 => "\\pi".to_owned(),
                _ => self.below(100).to_string(),
            };
        }
        let (a, b) = (self.expression(depth - 1), self.expression(depth - 1));
        match self.below(8) {
            0 => format!("({a}+{b})"),
            1 => format!("({a}-{b})"),
            2 => format!("{a}\\cdot {b}"),
            3 => format!("\\frac{{{a}}}{{{b}}}"),
            4 => format!("({a})^{}", self.below(4)),
            5 => format!("\\sin({a})"),
            6 => format!("\\ln({a})"),
            _ => format!("\\sqrt{{{a}}}"),
        }
    }
}

/// The same answer in another spelling.
fn respelled(answer: &str, way: u64) -> String {
    match way {
        0 => answer.replace("\\frac", "\\dfrac"),
        1 => answer.replace("\\frac", "\\tfrac").replace("\\cdot", "\\times"),
        2 => format!("${answer}$."),
        3 => format!("  {}  ", answer.replace('+', " + ").replace('-', " - ")),
        4 => answer.replace('(', "\\left(").replace(')', "\\right)"),
        5 => format!("({answer})"),
        6 => answer.replace("\\cdot ", "*").replace("\\pi", "π"),
        _ => format!("x={answer}"),
    }
}

#[test]
fn equality_is_reflexive_and_stable_under_respelling() {
    let mut random = Random(1);
    for _ in 0..3000 {
        let answer = if random.below(2) == 0 { random.number() } else { random.expression(3) };
        assert!(math_equal(&answer, &answer), "{answer}");
        let way = random.below(8);
        let other = respelled(&answer, way);
        // A division by zero has no value, and only equal text equals it; nor has what is too large.
        let is_defined = parse::parse(&answer, Commas::GroupDigits)
            .is_ok_and(|tree| value::eval(&tree, &mut Budget::new()).is_ok());
        if is_defined {
            assert!(math_equal(&answer, &other), "{answer} and {other}");
        }
    }
}

#[test]
fn equality_of_numbers_is_symmetric() {
    let mut random = Random(2);
    let mut equal_count = 0;
    for _ in 0..3000 {
        let (a, b) = (random.number(), random.number());
        assert_eq!(math_equal(&a, &b), math_equal(&b, &a), "{a} and {b}");
        let n = random.below(1_000_000);
        let d = 1 + random.below(40);
        let (a, b) = (format!("{n}/{d}"), format!("\\frac{{{}}}{{{}}}", 3 * n, 3 * d));
        assert!(math_equal(&a, &b) && math_equal(&b, &a), "{a} and {b}");
        let off_by_one = format!("\\frac{{{}}}{{{d}}}", n + 1);
        assert!(!math_equal(&a, &off_by_one), "{a} and {off_by_one}");
        equal_count += 1;
    }
    assert_eq!(equal_count, 3000);
}

#[test]
fn equality_of_expressions_sets_and_tuples_is_symmetric() {
    let mut random = Random(4);
    let mut equal_count = 0;
    for _ in 0..1500 {
        let depth = random.below(2) as u32;
        let (a, b) = (random.expression(depth), random.expression(depth));
        let (low, high) = (random.below(3), 3 + random.below(3));
        let pairs = [
            (format!("{a}+{b}"), format!("{b}+{a}")),
            (a.clone(), b.clone()),
            (format!("({low},{high})"), format!("[{low},{high})")),
            (format!("({low},4)\\cup(3,{high})"), format!("({low},{high})")),
            (format!("({a},{b})"), format!("({b},{a})")),
            (format!("\\{{{a},{b}\\}}"), format!("{b},{a}")),
        ];
        for (a, b) in pairs {
            let is_equal = math_equal(&a, &b);
            assert_eq!(is_equal, math_equal(&b, &a), "{a} and {b}");
            equal_count += usize::from(is_equal);
        }
    }
    assert!((3000..9000).contains(&equal_count), "{equal_count}");
}

#[test]
fn random_bytes_never_panic() {
    let alphabet: Vec<char> = r"0123456789.,;+-*/^_%!|=<>(){}[]\$&xyπ∞±√° eE".chars().collect();
    let words = ["\\frac", "\\sqrt", "\\left", "\\begin{pmatrix}", "\\text{", "or", "\\pm", "\\%"];
    let mut random = Random(3);
    for _ in 0..20_000 {
        let mut text = String::new();
        for _ in 0..random.below(24) {
            if random.below(8) == 0 {
                text.push_str(words[random.below(words.len() as u64) as usize]);
            } else {
                text.push(alphabet[random.below(alphabet.len() as u64) as usize]);
            }
        }
        math_equal("5", &text);
        let is_blank = tidy(&text).is_empty();
        assert!(is_blank || math_equal(&text, &text), "{text}");
    }
}

#[test]
fn a_completion_is_scored_by_its_final_answer() {
    let math = Math { extraction: Extraction::default(), rounding_places: ROUNDING_PLACES };
    let cases = [
        (r"<think>\boxed{4}</think> <answer>5</answer>", Some("5"), Some(1.0), "equal"),
        (r"It is \boxed{\frac{10}{2}}", Some("5"), Some(1.0), "equal"),
        (r"\boxed{5}", Some(r"so $\boxed{5}$"), Some(1.0), "equal"),
        (r"\boxed{5}", Some("2+3=5\n#### 5"), Some(1.0), "equal"),
        ("\\boxed{6}\n\\boxed{5}", Some("6"), Some(0.0), "5 is not 6"),
        (r"\boxed{6} \boxed{5}", Some("6"), Some(0.0), "2 boxed expressions in one sentence"),
        (r"\boxed{6} or \boxed{5}", Some("6"), Some(0.0), r"\boxed{6} or \boxed{5} is not 6"),
        (r"$\boxed{6}$ and $\boxed{5}$.", Some("5, 6"), Some(1.0), "equal"),
        (
            r"\boxed{5}",
            Some(r"either $\boxed{5}$ or $\boxed{6}$"),
            Some(0.0),
            r"5 is not \boxed{5}$ or $\boxed{6}",
        ),
        (r"\boxed{5, 6}", Some("5"), Some(0.0), "5, 6 is not 5"),
        ("It is 5", Some("5"), Some(0.0), "no answer found"),
        (r"\boxed{9^9^9}", Some("5"), Some(0.0), "too large: a number of more than 16384 bits"),
        (r"\boxed{5}", None, None, "the sample has no answer"),
        (r"\boxed{5}", Some(" "), None, "the sample has no answer"),
        (
            r"\boxed{5}",
            Some("9^9^9"),
            None,
            "the sample's answer is too large: a number of more than 16384 bits",
        ),
    ];
    for (completion, answer, score, reason) in cases {
        let verdict = math.score(&Sample { completion, answer, ..Sample::default() });
        assert_eq!((verdict.score, verdict.reason.as_str()), (score, reason), "{completion}");
    }
}
