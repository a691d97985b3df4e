"""Worked examples that `--shots` puts before a problem. Written for this purpose; they occur in no benchmark."""

WORD = (
    (
        "A baker has 3 trays with 12 rolls on each. She sells 20 rolls. How many rolls are left?",
        "The baker has 3 * 12 = 36 rolls.\nAfter selling 20 there are 36 - 20 = 16 rolls left.\n#### 16",
    ),
    (
        "Mira reads 15 pages on Monday and twice as many on Tuesday. The book has 100 pages. How many are unread?",
        "On Tuesday Mira reads 2 * 15 = 30 pages.\nTogether she has read 15 + 30 = 45 pages.\n"
        "100 - 45 = 55 pages are unread.\n#### 55",
    ),
    (
        "A bus ticket costs $2.50. Jonas rides to work and back on 4 days. How many dollars does he pay?",
        "Jonas takes 4 * 2 = 8 rides.\nHe pays 8 * 2.50 = 20 dollars.\n#### 20",
    ),
    (
        "In a class of 30 pupils, 40% play football. A third of those also play tennis. How many play both?",
        "30 * 40 / 100 = 12 pupils play football.\n12 / 3 = 4 of them also play tennis.\n#### 4",
    ),
    (
        "A tank holds 240 liters. A pump fills 15 liters a minute and a leak loses 3 liters a minute. "
        "How many minutes does it take to fill the empty tank?",
        "Each minute the tank gains 15 - 3 = 12 liters.\nIt takes 240 / 12 = 20 minutes.\n#### 20",
    ),
    (
        "Lena is 4 years older than Tim. In 6 years Tim will be 18. How old is Lena now?",
        "Tim is 18 - 6 = 12 years old now.\nLena is 12 + 4 = 16 years old.\n#### 16",
    ),
    (
        "A farmer packs 150 eggs into boxes of 6 and sells each box for $3. How many dollars does he earn?",
        "He packs 150 / 6 = 25 boxes.\nHe earns 25 * 3 = 75 dollars.\n#### 75",
    ),
    (
        "A rope of 36 meters is cut into two parts; one is three times as long as the other. "
        "How many meters long is the shorter part?",
        "The parts are together 1 + 3 = 4 times the shorter one.\nIt is 36 / 4 = 9 meters long.\n#### 9",
    ),
)
COMPETITION = (
    (
        "Solve $3x - 7 = 2x + 5$ for $x$.",
        "Subtracting $2x$ from both sides gives $x - 7 = 5$, so $x = 12$.\nThe answer is $\\boxed{12}$.",
    ),
    (
        "What is the sum of the two solutions of $x^2 - 9x + 14 = 0$?",
        "The polynomial factors as $(x-2)(x-7)$, so the solutions are $2$ and $7$ with sum $2 + 7 = 9$.\n"
        "The answer is $\\boxed{9}$.",
    ),
    (
        "Two fair dice are rolled. What is the probability that the numbers shown add up to $5$?",
        "Of the $6 \\cdot 6 = 36$ outcomes, $(1,4), (2,3), (3,2), (4,1)$ have this sum: "
        "$\\frac{4}{36} = \\frac{1}{9}$.\nThe answer is $\\boxed{\\frac{1}{9}}$.",
    ),
    (
        "A right triangle has legs of length $9$ and $12$. What is its perimeter?",
        "The hypotenuse is $\\sqrt{9^2 + 12^2} = \\sqrt{225} = 15$, so the perimeter is $9 + 12 + 15 = 36$.\n"
        "The answer is $\\boxed{36}$.",
    ),
    (
        "What is the remainder when $7^{10}$ is divided by $5$?",
        "We have $7 \\equiv 2 \\pmod 5$ and $2^4 \\equiv 1 \\pmod 5$, so "
        "$7^{10} \\equiv 2^{10} \\equiv 2^2 = 4 \\pmod 5$.\n"
        "The answer is $\\boxed{4}$.",
    ),
    (
        "Simplify $\\sqrt{50} + \\sqrt{18}$.",
        "$\\sqrt{50} = 5\\sqrt{2}$ and $\\sqrt{18} = 3\\sqrt{2}$; their sum is $8\\sqrt{2}$.\n"
        "The answer is $\\boxed{8\\sqrt{2}}$.",
    ),
)
SHOTS = {"word": WORD, "competition": COMPETITION}
