//! Tables of answers beyond the plain ones of `tests`: what takes symbolic or numeric work, what only
//! looks right, and every spelling of LaTeX.

use super::tests::check;

#[test]
fn dates_are_no_differences() {
    for (gold, pred) in [("2020-12-25", "1983"), ("1983", "2020-12-25"), ("10-12-2020", "-2022")] {
        assert!(!crate::math_equal(gold, pred), "{gold} {pred}");
    }
    assert!(crate::math_equal("2020-12-25", "2020-12-25"));
    assert!(crate::math_equal("10-2-3", "5"));
}

#[test]
fn trigonometry_and_logarithms() {
    let equal = r"
        \frac12 | \sin 30^\circ
        \frac{1}{2} | \cos(60^{\circ})
        \frac{\sqrt2}{2} | \sin\frac{\pi}{4}
        1 | \tan 45^\circ
        0 | \sin \pi
        -1 | \cos \pi
        \sqrt3 | \tan\frac{\pi}{3}
        2 | \sec 60^\circ
        2\cos 15^{\circ} | \frac{\sqrt6+\sqrt2}{2}
        \frac{\pi}{6} | \arcsin \frac12
        \frac{\pi}{4} | \arctan 1
        \frac{\pi}{3} | \cos^{-1} \frac12
        3 | \log_2 8
        2 | \log 100
        -3 | \log_{10} 0.001
        1 | \ln e
        5 | \ln e^5
        2 | e^{\ln 2}
        \ln 6 | \ln 2 + \ln 3
        2\ln 2 | \ln 4
        \frac{\ln 3}{\ln 2} | \log_2 3
        \log_3 2 | \frac{1}{\log_2 3}
        \sin 30^\circ | \sin \frac{\pi}{6}
        1 | \sin^2 x + \cos^2 x
        \sin 2x | 2\sin x\cos x
        \cos 2x | 1-2\sin^2 x
        \tan x | \frac{\sin x}{\cos x}
        e^{x+y} | e^x e^y
        e^{-x} | \frac{1}{e^x}
        2^{x+1} | 2\cdot 2^x
        2\ln x | \ln(x^2)
        \cosh x | \frac{e^x+e^{-x}}{2}
        e^{2\ln x} | x^2
    ";
    let different = r"
        \frac12 | \sin 30
        \frac12 | \cos 30^\circ
        \sin x | \cos x
        \sin 2x | 2\sin x
        \ln 6 | \ln 2 \cdot \ln 3
        \ln 5 | \ln 2 + \ln 3
        \log 2 | \ln 2
        3 | \log_8 2
        1 | \sin^2 x - \cos^2 x
        e^{x+y} | e^x + e^y
        e^{xy} | e^x e^y
        \tan x | \cot x
        \arcsin x | \sin x
        \frac{\pi}{6} | \arcsin \frac{\sqrt2}{2}
        \frac{\pi}{2} | 90
        2^{x+1} | 2^x+1
        \log_2 3 | 1.585
        \sin x | \sin y
        \sin x | x
        \cos x | \sqrt{1-\sin^2 x}
    ";
    assert_eq!((check(equal, true), check(different, false)), (33, 20));
}

#[test]
fn complex_numbers_and_nested_roots() {
    let equal = r"
        1+i\sqrt3 | 2e^{i\pi/3}
        -1 | e^{i\pi}
        i | e^{\frac{i\pi}{2}}
        2i | (1+i)^2
        \frac{1-i}{2} | \frac{1}{1+i}
        5 | |3+4i|
        -8 + 2i | 2i-8
        3+4i | 3+4\mathrm{i}
        \sqrt2+\sqrt3 | \sqrt{5+2\sqrt6}
        \sqrt{3}-1 | \sqrt{4-2\sqrt3}
        1 | \sqrt[3]{2+\sqrt5}+\sqrt[3]{2-\sqrt5}
        \frac{1+\sqrt5}{2} | \sqrt{\frac{3+\sqrt5}{2}}
        \sqrt2-1 | |1-\sqrt2|
        \sqrt[4]{4} | \sqrt2
        \sqrt[3]{-8} | -2
        -2 | (-8)^{1/3}
        \frac{2}{\sqrt[3]{4}} | \sqrt[3]{2}
        72\pi\sqrt3 | 72\sqrt{3}\pi
        36x \sqrt{35x} | 36\sqrt{35}x^{3/2}
        x\sqrt{x} | \sqrt{x}^3
        |x| | \sqrt{x^2}
        \sqrt{x+1} | (x+1)^{\frac12}
        \frac{1}{\sqrt{x}+1} | \frac{\sqrt{x}-1}{x-1}
        \sqrt{x^2+2x+1} | |x+1|
    ";
    let different = r"
        1+i\sqrt3 | 2e^{i\pi/6}
        1+i | 1-i
        2i | (1-i)^2
        -1 | i
        5 | 3+4i
        \sqrt2+\sqrt3 | \sqrt5
        \sqrt2+\sqrt3 | \sqrt{5+2\sqrt5}
        \sqrt{x^2+1} | x+1
        \sqrt{a+b} | \sqrt a+\sqrt b
        |x| | x
        \sqrt{x+1} | \sqrt{x}+1
        1-\sqrt2 | |1-\sqrt2|
        \sqrt[3]{2} | 1.26
        \sqrt[3]{2} | \sqrt[2]{3}
        \frac{1+\sqrt5}{2} | \frac{1-\sqrt5}{2}
        2 | \sqrt{4.000000000000000000000001}
    ";
    assert_eq!((check(equal, true), check(different, false)), (24, 16));
}

#[test]
fn sets_of_real_numbers() {
    let equal = r"
        1<x<2 | (1,2)
        1 \le x < 2 | [1,2)
        2 > x > 1 | (1,2)
        x>5 | (5,\infty)
        5 < x | (5,\infty)
        x \leq -3 | (-\infty,-3]
        x \ne 2 | (-\infty,2)\cup(2,\infty)
        x<1 \text{ or } x>3 | (-\infty,1)\cup(3,\infty)
        x>1, x<3 | (1,3)
        x\in(1,2) | (1,2)
        (0,3] | (0,2)\cup[1,3]
        (0,2)\cup[1,3] | (0,3]
        (-\infty,0)\cup(0,\infty) | \mathbb{R}\setminus\{0\}
        \mathbb{R} \setminus \{1,2\} | (-\infty,1)\cup(1,2)\cup(2,\infty)
        \mathbb{R} | (-\infty,\infty)
        (-\infty,\infty) | \mathbb R
        \mathbb{R} | ℝ
        \{-1\} \cup [0,7) | [0,7)\cup\{-1\}
        (-\infty, 0] \cup (\tfrac12, \tfrac32] | (-\infty,0]\cup(0.5,1.5]
        [1,3] \cap [2,5] | [2,3]
        (-\sqrt{3}, \sqrt{3}) | (-3^{1/2},3^{1/2})
        \{1\pm\sqrt{5},-2\} | \{-2,1+\sqrt5,1-\sqrt5\}
        \{1\pm\sqrt{5},-2\} | -2,\ 1-\sqrt5,\ 1+\sqrt5
        \emptyset | \varnothing
        \{\} | \emptyset
        \left[ \frac{\pi^2}{8}, \frac{5 \pi^2}{4} \right] | [\pi^2/8, 5\pi^2/4]
        7, -2, \text{ and } -5 | -5,-2,7
        19 \text{ and }43 | 43, 19
        4, -2 + 3i, -2 - 3i | -2\pm 3i, 4
    ";
    let different = r"
        (1,2) | 1<x<2
        (5,\infty) | x>5
        1<x<2 | [1,2]
        1<x<2 | (1,3)
        1<x<2 | (2,1)
        x>5 | (-\infty,5)
        x \ge 5 | (5,\infty)
        x \ne 2 | (2,\infty)
        (0,3] | (0,2)\cup(2,3]
        (0,3) | (0,3]
        (0,1)\cup(2,3) | (0,3)
        (0,1)\cup(2,3) | (0,1)
        (0,1)\cup(2,3) | (0,1)\cap(2,3)
        \mathbb{R} | (0,\infty)
        \mathbb{R} | \mathbb{Z}
        \mathbb{R}\setminus\{0\} | \mathbb{R}\setminus\{1\}
        \mathbb{R}\setminus\{0\} | \mathbb{R}
        \{1,2\} | (1,2)
        (1,2) | \{1,2\}
        \{1,2\} | \{1,2,3\}
        \{1,2\} | [1,2]
        \{1\} | \{2\}
        1 | \mathbb{R}
        x<1 \text{ or } x>3 | (1,3)
        \emptyset | \{0\}
        \emptyset | 0
        (1,2) | (1,2,3)
        (-\infty,3)\cup(3,\infty) | (-\infty,\infty)
        \{1\pm\sqrt{5},-2\} | \{1+\sqrt5,-2\}
    ";
    assert_eq!((check(equal, true), check(different, false)), (29, 29));
}

#[test]
fn tuples_vectors_matrices_and_systems() {
    let equal = r"
        (x,y)=(1,2) | (1,2)
        (1,2) | (x,y)=(1,2)
        (1,2) | (a,b) = (1, 2)
        x=1,y=2 | (1,2)
        (1,2) | x=1, y=2
        (1,2) | y=2, x=1
        x=1,y=2 | y=2 \text{ and } x=1
        (8,-2) | \left(8,-2\right)
        (10,14,61) | (10, 14, 61)
        \langle 1,2,3\rangle | (1,2,3)
        3\mathbf{i}+4\mathbf{j} | 4\mathbf{j}+3\mathbf{i}
        3\mathbf{i}-\mathbf{k} | 3\hat{i}-\hat{k}
        \begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix} | \begin{pmatrix} 0.2 \\ -3.6 \end{pmatrix}
        \begin{bmatrix}1&0\\0&1\end{bmatrix} | \left[\begin{matrix}1&0\\0&1\end{matrix}\right]
        \begin{pmatrix}\sqrt4\\1\end{pmatrix} | \begin{pmatrix}2\\1\end{pmatrix}
        \begin{pmatrix}1/5\\2/5\end{pmatrix} | \frac15\begin{pmatrix}1\\2\end{pmatrix}
        \begin{pmatrix}-1\\2\end{pmatrix} | -\begin{pmatrix}1\\-2\end{pmatrix}
        \begin{pmatrix}3\\3\end{pmatrix} | \begin{pmatrix}1\\2\end{pmatrix}+\begin{pmatrix}2\\1\end{pmatrix}
        \begin{pmatrix}x+1\\x\end{pmatrix} | \begin{pmatrix}1+x\\x\end{pmatrix}
        ((1,2),(3,4)) | ((1,2),(3,4))
        (1,2),(3,4) | (3,4),(1,2)
        (0,0), (1,1) | (1,1) \text{ and } (0,0)
        (-a,0) | (-1a, 0)
    ";
    let different = r"
        (x,y)=(1,2) | (2,1)
        (1,2) | (x,y)=(2,1)
        (1,2) | x=2, y=1
        x=1,y=2 | x=2,y=1
        x=1,y=2 | (2,1)
        (1,2),(3,4) | (1,3),(2,4)
        (1,2),(3,4) | (1,2)
        (1,2) | (1,2),(3,4)
        ((1,2),3) | (1,(2,3))
        3\mathbf{i}+4\mathbf{j} | 4\mathbf{i}+3\mathbf{j}
        3\mathbf{i}+4\mathbf{j} | 7
        \begin{pmatrix}1\\2\end{pmatrix} | (1,2)
        \begin{pmatrix}1\\2\end{pmatrix} | 1,2
        \begin{pmatrix}1\\2\end{pmatrix} | \begin{pmatrix}2\\1\end{pmatrix}
        \begin{pmatrix}1&0\\0&1\end{pmatrix} | \begin{pmatrix}0&1\\1&0\end{pmatrix}
        \begin{pmatrix}1&0\\0&1\end{pmatrix} | 1
        \begin{pmatrix}1\end{pmatrix} | \begin{pmatrix}1\\1\end{pmatrix}
        [1,2] | (1,2)
        \begin{pmatrix}1\\2\end{pmatrix} | 2\begin{pmatrix}1\\2\end{pmatrix}
        (1,2,3) | (3,2,1)
        (1,2) | (1;2;3)
    ";
    assert_eq!((check(equal, true), check(different, false)), (23, 21));
}

#[test]
fn rational_expressions_and_equations() {
    let equal = r"
        \frac{h^2}{m} | h^2/m
        -\frac1{2x} | \frac{-1}{2x}
        \frac{11x + 5}{x - 2} | 11+\frac{27}{x-2}
        4(3-x)(3+x) | 36-4x^2
        (-4x^2+x+1)(4x^2+x+1) | -16x^4+x^2+2x+1
        x^9+6859 | (x^3+19)(x^6-19x^3+361)
        y = -2x | 2x + y = 0
        y = 2x + 3 | 2x - y + 3 = 0
        y = 2x + 3 | 2x + 3
        \frac{x^2}{16} - \frac{y^2}{9} = 1 | 9x^2-16y^2=144
        20x + 23y + 26z - 69 = 0 | 69 = 20x+23y+26z
        (x-1)^2+(y-2)^2=9 | x^2-2x+y^2-4y-4=0
        x+y>1 | 2x+2y>2
        x-y<1 | y-x>-1
        p+q-r | -r+q+p
        \frac{2a + b}{2} | a+\frac b2
        f(x)=x^2 | x^2
        f(x)=x^2 | f(x) = x\cdot x
        x+\frac1x | \frac{x^2+1}{x}
        \frac{a}{b}\div\frac{c}{d} | \frac{ad}{bc}
        (x+1)^{70} | (x+1)^{30}(1+x)^{40}
        \frac{x^3-1}{x-1} | x^2+x+1
        {n \choose 2} | \frac{n(n-1)}{2}
        a_{n+1}=2a_n | a_{n+1} = 2 a_n
        x \approx 3.5 | 3.5
        \frac{1}{2}mv^2 | \frac{mv^2}{2}
    ";
    let different = r"
        \frac{h^2}{m} | \frac{h}{m}
        y = -2x | y = 2x
        y = 2x + 3 | y = 2x - 3
        x = 5 | 2x = 10
        x+y>1 | x+y<1
        x+y>1 | 2x+2y>1
        x-y<1 | y-x<-1
        x+1 | y+1
        x^2 | 2x
        x^2 | x2
        2^x | x^2
        \frac{x+1}{x} | 1
        (a+b)^2 | a^2+b^2
        x^2+1 | (x+1)(x-1)
        a/bc | a/b/c/d
        5 | 2x = 5
        x=5 | x \ge 5
        x=5 | x \ne 5
        (x+1)^{70} | (x+1)^{30}(1+x)^{41}
        x+\frac1x | \frac{x+1}{x}
        f(x)=x^2 | g(x)=x^2
        \frac{x^2}{16} - \frac{y^2}{9} = 1 | \frac{x^2}{9} - \frac{y^2}{16} = 1
        p | q
        n! | (n+1)!
    ";
    let counts = (check(equal, true), check(different, false));
    assert_eq!(counts, (26, 24));
}

#[test]
fn spellings_of_numbers() {
    let equal = r"
        10000 | 10 000
        1234567.5 | 1,234,567.5
        771,\!400 | 771400
        10{,}000 | 10,000
        111, \! 111, \! 111 | 111111111
        \frac{12}{5,\!525} | 12/5525
        1000 | 10³
        0.001 | 10⁻³
        1200000 | 1.2×10⁶
        7/8 | ⅞
        3 4/5 | 3⅘
        1234 | １２３４
        6\frac15 | 6.2
        33 \frac{1}{3} | \frac{100}{3}
        1:2 | \frac12
        3:2 | 6:4
        3:4:5 | 3 : 4 : 5
        \lfloor 3.7 \rfloor | 3
        \lceil 3.2 \rceil | 4
        \frac{1 \over 2}{3} | \frac16
        {1 \over 2} | 0.5
        \frac{\text{1}}{2} | \frac12
        \!\sqrt{33} | \sqrt{33}
        2^{2005} | 2\cdot 2^{2004}
        \dfrac{5}{143} | \cfrac{5}{143}
        12_{10} | 12
        30\% | 0.3
        12.5\% | \frac18
        \displaystyle\frac{1}{2} | \frac12
        1.0 \times 10^{-3} | 0.001
        3.0\times10^8 | 300000000
        10^{-2} | 0.01
        2.5e-3 | 0.0025
        0.\overline{142857} | \frac17
        -0.5 | -\dfrac{1}{2}
        \frac{5}{13} | 0.38461538461538464
        \frac23 | 0.6666666666666666
        -\frac{32}{3} | -10.666666666666666
        5! | 2\cdot3\cdot4\cdot5
    ";
    let different = r"
        10000 | 10 00
        10000 | 1 0000
        1234 | 1.234
        1,5 | 1.5
        10³ | 103
        0.001 | 10³
        1:2 | 2:1
        3:4:5 | 5:4:3
        3:4:5 | 3:4
        \lfloor 3.7 \rfloor | 4
        6\frac15 | \frac65
        2^{2005} | 2^{2004}
        30\% | 3
        12_{3} | 12_{4}
        0.3 | 0.\overline{3}
        0.142857 | \frac{1}{8}
        1/3 | 0.3333
        0.1 | 0.1000001
        3.0\times10^8 | 3.0\times10^7
        5! | 5
        10^{-2} | -100
        \frac{5}{13} | 0.38461538461538564
        \frac23 | 0.666666
    ";
    assert_eq!((check(equal, true), check(different, false)), (39, 23));
}

#[test]
fn units_and_choices() {
    let equal = r"
        5 \text{ m} | 5\,\mathrm{m}
        25 \, \text{km} | 25\text{ kilometers}
        15\mbox{ cm}^2 | 15\text{ cm}^2
        440\text{ cm}^2 | 440 cm^2
        99\pi \text{ square inches} | 99\pi
        12\text{ degrees} | 12^\circ
        80^{\circ} | 80
        20^\circ\text{C} | 20^\circ
        20^\circ C | 20 \text{ celsius}
        27^\circ, 63^\circ | 63, 27
        \$115,000 | 115000
        \$ 10 | 10 \text{ dollars}
        50¢ | 50 \text{ cents}
        10\;\text{edges} | 10
        45\text{ mph} | 45
        A | A
        A | (A)
        A | A.
        A | A) 12
        A | (A) twelve apples
        A | Option A
        (B) | B. 7
        \text{(C)} | \textbf{(C)}
        \text{(C)} | \mathrm{C}
        \textbf{(D)}\ 12 | D
        \text{A,D} | \text{A, D}
        \text{even} | even
        \text{Friday} | friday.
    ";
    let different = r"
        5 \text{ m} | 5 \text{ km}
        25 \, \text{km} | 25 \text{ miles}
        20^\circ C | 20^\circ F
        \$10 | 10 \text{ cents}
        80^{\circ} | 81^{\circ}
        5 \text{ hours} | 5 \text{ minutes}
        A | B
        A | a b
        A | (A)(B)
        A | A. or B.
        A | (B) A
        A | (A) or (B)
        A | A, B
        A | (A), 680
        \text{(E)} | \text{(E)} \text{ or } 800
        A | ABC
        A | 5
        \textbf{(D)}\ 12 | \textbf{(C)}\ 12
        \text{A,D} | \text{A}
        \text{A,D} | \text{A,C}
        \text{even} | \text{odd}
        \text{Friday} | \text{Fri}
        \text{ellipse} | \text{circle}
        \text{neither} | \text{either}
    ";
    assert_eq!((check(equal, true), check(different, false)), (28, 24));
}

/// Several answers where one is asked for, in every way that comes to mind.
#[test]
fn lists_never_win() {
    let different = r"
        5 | 4, 5
        5 | 5, 4
        5 | 5 and 4
        5 | 4 or 5
        5 | 5 \text{ and } 4
        5 | \{4,5\}
        5 | {4,5}
        5 | (4,5)
        5 | [4,5]
        5 | 4;5
        5 | 4 5
        5 | 5 4
        5 | 5/4
        5 | 5:4
        5 | \pm 5
        5 | 5 \pm 1
        5 | x=4, x=5
        5 | x=5, y=5
        5 | 4=5
        5 | 5=4=5
        5 | 4<5
        5 | x>4
        5 | x \ge 5
        5 | 4 \le x \le 6
        5 | [5,6]
        5 | \mathbb{R}
        5 | 5 \lor 6
        5 | \begin{cases} 5 \\ 6 \end{cases}
        5 | \begin{pmatrix} 5 \\ 6 \end{pmatrix}
        5 | 5\\6
        5 | 5 \& 6
        5 | 5, 5
        5 | \boxed{5} \boxed{6}
        5 | \boxed{5}, \boxed{6}
        5 | 1, 2, 3, 4, 5, 6, 7, 8, 9
        5 | maybe 5
        5 | 5?
        5 | x
        5 | \infty
    ";
    assert_eq!(check(different, false), 39);
}

#[test]
fn sets_by_a_condition() {
    let equal = r"
        \{x \mid x > 3\} | (3, \infty)
        (3, \infty) | \{x : x > 3\}
        \{x \in \mathbb{R} : 0 < x \le 2\} | (0, 2]
        \{x : x > 0, x < 2\} | (0, 2)
        \{x : x > 0 \text{ and } x < 2\} | (0, 2)
        \{x : x < 0 \text{ or } x > 2\} | (-\infty, 0) \cup (2, \infty)
        \{x : x \ne 1\} | \mathbb{R} \setminus \{1\}
        \{t \mid t \ge 1\} | \{x : x \ge 1\}
        \{x : x > 3\} | x > 3
        x > 3 | \{x : x > 3\}
        \{1, 2\} | \{2, 1\}
    ";
    let different = r"
        \{x \mid x > 3\} | [3, \infty)
        \{x \mid x > 3\} | 3
        \{x : y > 3\} | (3, \infty)
        \{x : x > 0, x < 2\} | (-\infty, \infty)
        \{x \in \mathbb{Z} : x > 3\} | (3, \infty)
        (3, \infty) | x > 3
        \{x : x^2 = 4\} | (2, 2)
    ";
    check(equal, true);
    check(different, false);
}

#[test]
fn mixed_numbers_with_signs_behind() {
    let equal = r"
        \frac13 | 33\frac13\%
        12\frac12\% | 12.5\%
        12 1/2% | 0.125
        -2\frac12^\circ | -2.5^\circ
        2\frac12 x | \frac{5x}{2}
        3\cdot 1\frac12 | 4.5
        1\frac12 + 1 | 2.5
    ";
    let different = r"
        \frac13 | 33\frac13
        \frac12 | 2\frac12\%
        \frac{25}{4} | 2\frac12^2
        5 | 5 \text{ at least}
        5 | \text{at most } 5
        \pounds 5 | \$5
    ";
    check(equal, true);
    check(different, false);
}

#[test]
fn units_in_their_spellings() {
    let equal = r"
        60 \text{ km/h} | 60
        60 | 60 km/h
        60 \text{ m/s} | 60
        60 \text{ km/h} | 60 \text{ km/hr}
        15 \text{ cm}^2 | 15 sq cm
        ₹500 | 500
        ¥5 | 5 yen
    ";
    let different = r"
        5 | 5 thousandths
        5 | 5 sevenths
        5 | 5 twelfths
        5 | 5 quadrillion
        5 | 5 lakh
        5 | 5 doubled
        5 | 5 below zero
        5 | 5 wrong
        10:30 \text{ AM} | 10:30 \text{ PM}
        5 \text{ seconds} | 5 \text{ milliseconds}
        5 \text{ seconds} | 5 ms
        5 \text{ in} | 5 \text{ ft}
        5 mph | 5 kph
        5 grams | 5 micrograms
        \$5 | 5 yen
        30^\circ | 30\%
        50\% | \$50
    ";
    check(equal, true);
    check(different, false);
}

#[test]
fn conditions_read_from_either_side() {
    let equal = r"
        3 \leq x \leq 5 | 5 \ge x \ge 3
        -2<x<2 | 2>x>-2
        x > 3 | x \in (3, \infty)
        x < -1 \lor x > 1 | (-\infty,-1)\cup(1,\infty)
        \{1,2,2\} | \{1,2\}
        \{1,2\} | \{2,1,1\}
    ";
    let different = r"
        3 \leq x \leq 5 | 5 > x \ge 3
        x > 3 | y \in (3, \infty)
        1,2,2 | 1,2
        \{1,2,2\} | \{1,2,3\}
        \Delta | \delta
        \Omega | \omega
    ";
    check(equal, true);
    check(different, false);
}

#[test]
fn decorations_and_layouts() {
    let equal = r"
        \frac{3}{4} | 3 \over 4
        \frac{3}{4} | \color{red}{\frac34}
        \frac{3}{4} | \textcolor{red}{\frac34}
        \frac{3}{4} | \large\frac34
        \frac{3}{4} | \ensuremath{\frac34}
        \frac{3}{4} | \nicefrac34
        42 | \$42\$
        42 | =42
        42 | \begin{align*}42\end{align*}
        \begin{pmatrix}1&2\\3&4\end{pmatrix} | \begin{smallmatrix}1&2\\3&4\end{smallmatrix}
        \begin{pmatrix}1&2\\3&4\end{pmatrix} | \begin{Bmatrix}1&2\cr 3&4\end{Bmatrix}
        \begin{pmatrix}1&2\\3&4\end{pmatrix} | \begin{pmatrix}1&2\\[4pt]3&4\end{pmatrix}
        C | c
    ";
    let different = r"
        \frac{3}{4} | 4 \over 3
        42 | =43
        5 | x = 4 \over 5
    ";
    check(equal, true);
    check(different, false);
}
