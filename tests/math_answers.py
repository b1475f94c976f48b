"""Answers to math questions as people and models write them, and what they are worth: the table of reading and comparing.

`BOXED` has, by kind, a gold answer, what is right and what is wrong in a box. `WRITTEN` has, by kind, a gold answer and
whole completions. `UNREADABLE` are gold answers that say nothing.
"""

from collections.abc import Iterator

Rows = list[tuple[str, list[str], list[str]]]

# fmt: off
BOXED: dict[str, Rows] = {
    "thousands": [
        ("1234",
         ["1\\,234", "1{,}234", "1 234", "1,234", "1'234", "1\u2009234", "1_234", "1,\\!234", "1\\ 234", "1,234.00"],
         ["234", "1", "(1,234)", "1, 234", "1.234"]),
        ("5 \\text{ or } 6", ["6 \\text{ cm or } 5 \\text{ cm}"], ["5 \\text{ cm}", "6 \\text{ cm or } 5 \\text{ m}"]),
        ("12345.67", ["12,345.67", "12.345,67", "12 345.67"], ["12", "12345", "12,345"]),
        ("100, 200", ["200, 100"], ["100200", "100,200"]),
        ("1{,}000{,}000", ["10^6", "1.000.000", "1 million", "one million"], ["1", "1000"]),
    ],
    "units and currency": [
        ("12",
         ["12\\text{ cm}^2", "12 km/h", "12 m/s^2", "12\\,\\text{kg}\\cdot\\text{m}", "12cm", "12 g", "12 cm³",
          "12 sq ft", "\\$12", "12 €", "USD 12", "US\\$12", "£12.00", "12¢", "\\$12/\\text{hour}",
          "12\\,\\frac{\\text{m}}{\\text{s}}", "12 cups of sugar", "12 more apples", "12\\,^\\circ\\mathrm{C}", "12 °F",
          "12^{\\circ}", "12 in.", "about 12", "\\approx 12", "~12", "12+", "\\text{Total: } 12", "x = 12 \\text{ cm}",
          "12 \\pmod{17}"],
         ["12 million", "12 dozen", "12K", "12 feet 10 inches", "12 hours 30 minutes", "12 PM and 1 AM", "12 of 13",
          "12 to 13", "12 times 2", "12 squared", "12 tens", "12 is wrong", "12x", "12i", "12\\pi", "12\\%5",
          "12 hundred", "12 doubled", "12 eighths", "exceeding 12"]),
        ("9\\pi", ["9π", "9\\pi\\text{ cm}^2", "9\\pi square meters", "9*pi"], ["9", "28.27", "\\pi", "9\\pi^2"]),
        ("5000000", ["5 million", "\\$5 million", "5\\text{ million dollars}"], ["5"]),
        ("5000", ["5K", "5 thousand"], ["5"]), ("24", ["2 dozen", "2 dozen eggs"], ["2"]),
        ("72^\\circ", ["72", "72°", "72 degrees", "\\angle A = 72^\\circ"], ["27", "\\frac{2\\pi}{5}"]),
        ("\\sin 60^\\circ", ["\\frac{\\sqrt{3}}{2}"], ["60", "\\sin 60"]),
    ],
    "dress": [
        ("5",
         ["\\mathbf{5}", "{\\color{red}5}", "\\textcolor{red}{5}", "\\Large 5", "\\displaystyle 5", "\\underline{5}",
          "5\\quad", "\\,5\\,", "5~", "5\\ ", "5 \\checkmark", "{5}", "\\left(5\\right)",
          "\\begin{aligned}5\\end{aligned}", "５", "05", "5.00", "+5", "5_{10}", "$5$", "\\(5\\)"],
         ["\\overline{5}", "5!", "-5", "5^2", "\\sqrt{5}", "\\phantom{5}6"]),
        ("-3", ["−3", "–3", "- 3", "negative 3", "(-3)", "\\text{negative } 3", "minus three"], ["3", "--3"]),
        ("x^2+1", ["x²+1", "x^{2} + 1", "1+x**2", "f(x)=x^2+1"], ["x^2", "x2+1", "x^2-1"]),
        ("4\\sqrt{3}",
         ["4√3", "4\\sqrt3", "4sqrt(3)", "\\sqrt{48}", "4\\sqrt{3} \\approx 6.93"],
         ["4", "3", "6.93", "\\sqrt{3}"]),
        ("\\mathrm{e}^2", ["e^2", "\\exp(2)"], ["e^3", "2"]),
        ("\\sin^2 t", ["(\\sin t)^2", "1-\\cos^2 t"], ["\\sin^3 t"]),
    ],
    "numbers in other forms": [
        ("9/4",
         ["2 1/4", "2\\frac14", "2¼", "2 and 1/4", "2.25", "two and a quarter", "2 1/4 \\text{ cups}"],
         ["1/4", "21/4", "2"]),
        ("-\\frac72", ["-3\\frac{1}{2}", "-3.5", "\\frac{-7}{2}"], ["-3/2", "3.5"]),
        ("\\frac13",
         ["0.\\overline{3}", "0.\\dot{3}", "0.(3)", "0.333...", "0.333\\ldots", "one third"],
         ["0.3", "0.333", "0.333333", "0.\\overline{4}"]),
        ("0.\\overline{12}", ["\\frac{4}{33}", "0.121212..."], ["0.\\overline{21}", "0.12"]),
        ("120000", ["1.2 \\times 10^5", "1.2e5", "1.2E+05", "1.2×10⁵", "1.2*10^5"], ["5", "1.2", "12000"]),
        ("\\sqrt{17}", ["4.123105625617661"], ["4.12", "4.123106", "17"]), ("e", ["2.718281828"], ["2.718", "2.72"]),
        ("1 - \\frac{1}{\\mathrm{e}}", ["\\frac{e-1}{e}"], ["1 + \\frac{1}{e}"]),
        ("120", ["5!", "\\binom{10}{3}", "{10 \\choose 3}", "C(10,3)"], ["5", "10"]),
        ("i", ["e^{i\\pi/2}"], ["-i", "1"]), ("\\ln 2", ["\\log 2"], ["\\log_{10} 2", "2"]),
    ],
    "very small and very near": [
        ("0.0000672", ["6.72\\times 10^{-5}"], ["0.0000673", "0"]),
        ("10^{-9}", ["1e-9", "0.000000001"], ["10^{-10}", "0"]),
        ("2^{100}", ["1267650600228229401496703205376"], ["1267650600228229401496703205377"]),
        ("\\frac{1}{1001!}", [], ["\\frac{1}{1003!}", "0"]), ("\\frac{1000001}{1000000}", ["1.000001"], ["1"]),
        ("3.14", [], ["\\pi"]), ("\\frac23", ["\\frac23 \\approx 0.67"], ["\\frac23 \\approx 0.68"]),
        ("0.33", [], ["\\frac13"]),
    ],
    "percentages": [
        ("\\frac12", ["50\\%", "50 percent", "0.5 = 50\\%"], ["0.5\\%"]), ("50", ["50\\%"], ["0.5\\%", "0.5"]),
        ("0.5", [], ["0.5\\%"]), ("20\\%", ["\\frac15", "20", "0.2"], ["2\\%"]), ("1800\\%", ["18"], ["0.18"]),
    ],
    "sets, lists, tuples": [
        ("\\{1,2\\}",
         ["2,1", "1 and 2", "x = 1 \\text{ or } x = 2", "x_1=1,x_2=2", "x\\in\\{1,2\\}"],
         ["(1,2)", "[1,2]", "1", "1,2,3", "1,1,2"]),
        ("1,1,2", ["1,2,1"], ["1,2", "1,2,2"]), ("5", ["\\{5\\}"], ["5, 6", "5 or 6", "\\{4,5\\}", "x=5 or x=6"]),
        ("(3,4)",
         ["3,4", "x=3, y=4", "y=4, x=3", "(x,y)=(3,4)", "\\langle 3,4\\rangle"],
         ["(4,3)", "4,3", "x=4, y=3", "(3,4,5)"]),
        ("x=3, y=4",
         ["(3,4)", "\\begin{cases}x=3\\\\y=4\\end{cases}"],
         ["(4,3)", "\\begin{cases}x=3\\\\y=5\\end{cases}"]),
        ("\\pm 35", ["-35, 35"], ["35"]),
        ("(1,2),(3,4)", ["(3,4),(1,2)", "(1,2) and (3,4)"], ["(1,2),(4,3)", "1,2,3,4"]),
        ("\\emptyset", ["\\{\\}", "∅", "no solution"], ["0", "\\{0\\}"]),
        ("\\text{no solution}", ["\\emptyset"], ["0"]),
        ("\\frac12",
         ["\\frac{1}{2} \\text{ or } 0.5", "\\frac{1}{2} (0.5)", "\\frac12 = 0.5"],
         ["\\frac12 or 0.6", "\\frac12x"]),
    ],
    "intervals and inequalities": [
        ("[1,5)",
         ["1\\le x<5", "5 > x \\geq 1", "x \\in [1,5)", "[1,5[", "\\{x \\mid 1 \\le x < 5\\}"],
         ["(1,5)", "[1,5]", "1", "5"]),
        ("(-\\infty,0)\\cup(1,\\infty)",
         ["x<0 \\text{ or } x>1", "(1,\\infty)\\cup(-\\infty,0)", "(-\\infty,0),(1,\\infty)"],
         ["(-\\infty,0]\\cup(1,\\infty)", "(-\\infty,0)"]),
        ("(-\\infty,2)\\cup(2,\\infty)", ["\\mathbb{R} \\setminus \\{2\\}", "x \\neq 2"], ["2", "\\mathbb{R}"]),
        ("x>3", ["(3,\\infty)", "3<x"], ["3", "x<3", "x\\ge3"]), ("3", [], ["x>3", "x \\neq 3", "\\le 3"]),
        ("A>C>B", ["B<C<A"], ["A>B>C"]), ("A-C-B", [], ["A-B-C"]),
    ],
    "equations": [
        ("y=2x+1", ["2x+1", "2x-y+1=0", "f(x)=2x+1"], ["y=2x-1", "x=2y+1", "2"]), ("n = 3k", ["3k"], ["3"]),
        ("5", ["2+3=5", "x = 5"], ["2 = 5", "5 = 6"]), ("2x+2y=6", ["x+y=3"], ["x+y=4"]),
        ("a_n = 2^n", ["2^n"], ["3^n", "2"]), ("a=1,b=2", ["b=2,a=1"], ["a=2,b=1"]),
        ("k\\pi", ["n\\pi", "k\\pi, k \\in \\mathbb{Z}"], ["2k\\pi", "\\pi"]), ("f(x)=cx", ["f(x)=kx"], ["f(x)=cx^2"]),
        ("x=3", ["3"], ["y=3"]),
    ],
    "matrices": [
        ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}",
         ["\\begin{bmatrix}1&2\\\\3&4\\end{bmatrix}", "\\left(\\begin{smallmatrix}1&2\\\\3&4\\end{smallmatrix}\\right)",
          "[[1,2],[3,4]]", "\\begin{pmatrix}\n1 & 2 \\\n3 & 4\n\\end{pmatrix}"],
         ["\\begin{pmatrix}1&3\\\\2&4\\end{pmatrix}", "1,2,3,4"]),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", ["(1,2)"], ["(2,1)", "1,2"]),
        ("-2", ["\\begin{vmatrix}1&2\\\\3&4\\end{vmatrix}"], ["\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}"]),
    ],
    "times and ratios": [
        ("2:30", ["2:30 pm", "2{:}30"], ["2:45", "2.5", "30", "230", "14:30"]),
        ("2:30 PM", ["14:30", "2:30"], ["2:30 AM", "13:30", "15:30"]), ("00:30", [], ["12:30 pm"]),
        ("2 \\text{ AM}", ["2:00 a.m."], ["2 PM", "2"]),
        ("2:3", ["4:6", "\\frac{2}{3}", "2 : 3"], ["3:2", "2", "2:4"]), ("3:1", ["3"], ["1:3"]), ("3", [], ["9:3"]),
        ("June 20", ["20 June", "June 20th"], ["June 21", "July 20", "20"]),
    ],
    "letters and words": [
        ("C", ["(C)", "\\text{(C)}", "(C) 12", "Option C", "Option C is correct"], ["D", "(D) 12", "Option C is wrong"]),
        ("12", ["(C) 12", "\\textbf{(C)}\\ 12"], ["(C) 13"]), ("TFT", ["\\text{TFT}"], ["TTF", "FTT"]),
        ("HT", [], ["TH"]), ("ACB", [], ["ABC"]), ("AB", ["BA"], ["AC"]), ("IX", [], ["XI"]),
        ("I, III", ["III and I"], ["I and II", "I"]), ("stop", ["\\text{Stop}"], ["pots"]),
        ("\\text{Evelyn}", ["Evelyn", "evelyn", "Evelyn's"], ["Eve", "something else"]),
        ("yes", ["Yes, it is", "Yes, because 3 < 5"], ["no", "not yes", "No, because 3 < 5"]),
        ("\\overline{AB}", ["\\overline{AB}"], ["\\overline{AC}"]),
        ("1011_2", ["1011_{2}", "1011"], ["1011_3", "11"]), ("0", ["none", "zero", "-0"], ["no", "\\emptyset"]),
        ("5", ["five", "\\text{the answer is five}"], ["four", "half of 5"]),
    ],
    "words around a number": [
        ("6",
         ["the answer is 6", "there are 6 ways", "6 ways in total, since 2 x 3", "6, not 7", "6 (see step 3)", "6 [1]",
          "the value of x is 6", "the sum of the digits is 6"],
         ["it is not 6", "no more than 6", "5 or 6", "either 5 or 6", "x is 5 or 6", "between 5 and 6",
          "all integers from 1 to 6", "the ratio is 2 to 6", "the square root of 6", "greater than 6", "2 out of 6",
          "6 percent of 7", "twice 6"]),
    ],
}

WRITTEN: dict[str, Rows] = {
    "marks": [
        ("5",
         ["\\boxed{4} no. <answer>5</answer>", "<reasoning>\\boxed{4}</reasoning><answer>5</answer>",
          "\\boxed{5}\n#### 7", "<answer>5</answer>\n<answer></answer>", "<answer>5", "<answer>5</answer",
          "<answer>5<answer>", "<answer>\n#### 5\n</answer>", "<Answer>5</Answer> in 2 steps", "So \\boxed{5",
          "So boxed{5}", "So \x08oxed{5}", "\\framebox{5}", "\\text{\\boxed{5}}", "\\boxed{5$}",
          "(\\boxed{5}\\).</answer>", "\\boxed{5}<|eot_id", "\\boxed{5}[MASK]",
          "<answer>\n\\boxed{5\\text{ feet><|eot_id|>", "#### **5**", "#### 5\nAs in 3 steps.", "#### The answer is 5",
          "<think>\\boxed{7}</think>The answer is 5.", "First \\boxed{4}. Wait. \\boxed{5}"],
         ["\\boxed{5} \\boxed{6}", "<answer>4</answer> 5", "#### 5 or 6", "<answer></answer> 5"]),
        ("(2,3)",
         ["$x=\\boxed{2}$, $y=\\boxed{3}$", "\\boxed{2}, \\boxed{3}"],
         ["\\boxed{2} \\boxed{3}", "\\boxed{3}, \\boxed{2}"]),
        ("\\frac56",
         ["So \\\\boxed{\\\\frac{5}{6}}", "So \x08oxed{\x0crac{5}{6}}", "\\boxed{\\dfrac56}"],
         ["\\boxed{5}"]),
    ],
    "phrases": [
        ("12",
         ["Answer: 12\n\n(I checked it in 3 ways.)", "The final answer is 12. Note that 7 is none.",
          "**Answer:** 12, since 8 + 4 = 12.", "Final Answer: **12**", "Answer:\n\n12",
          "The answer is 12 (3 boxes of 4).", "The answer is $x = 12$.", "the result is 12 cm^2.",
          "### Final Answer\n12", "The answer is twelve."],
         ["The answers are 2 and 12.", "The answer is not 12.", "The answer is $12!$.", "The answer is $\\log_2 12$."]),
        ("(3,5)", ["Answer: (3, 5)"], ["Answer: 5"]),
        ("\\text{(B)}", ["Answer: (B)", "The answer is B.", "B) 12", "(B) 12", "B. 12 apples"], ["Answer: C", "C) 12"]),
        ("5",
         ["It's not hard: the answer is 5.", "If x is 4, the answer is 5.", "I would say the answer is 5.",
          "No doubt the answer is 5."],
         ["I don't think the answer is 5.", "We cannot say that the answer is 5.", "Let me check whether the answer is 5.",
          "I doubt that the answer is 5.", "Suppose the answer is 5. Then it fails.",
          "You might think the answer is 5, but it is 6."]),
        ("9\\pi", ["Answer: $9\\pi$"], ["Answer: 9"]), ("1011", ["The answer is 1011_2."], ["The answer is 2."]),
    ],
    "the last expression": [
        ("3\\sqrt{2}", ["The length is $3\\sqrt{2}$."], ["The length is 3."]),
        ("29", ["It costs $29.00 in all."], ["It costs $29.50."]),
        ("9/4", ["The tank holds 2 1/4 gallons."], ["The tank holds 1/4."]),
        ("-7", ["Therefore the value is −7.", "It is –7."], ["It is 7."]), ("25", ["So 25% of them."], ["So 2 of 25."]),
        ("2000000", ["That makes 2 million people."], ["That makes 2 people."]),
        ("1234567", ["The total is 1 234 567.", "The total is 1,234,567."], ["The total is 567."]),
        ("3:30", ["She arrives at 3:30."], ["30"]), ("21", ["It is the 21st one."], ["It is the 22nd one."]),
        ("8",
         ["That leaves 10 - 2 = 8 apples.", "After 3 days, 8 remain.", "8"],
         ["$x^8$", "1.8", "at least 8", "7 or 8", "It is less than 8.", "It is 1 in 8.", "(7,8)", "half of 8",
          "8 million", "x = 7, y = 8", "from 1 to 8", "-8"]),
        ("2", ["x = 2"], ["$3\\sqrt{2}$", "$\\frac{\\pi}{2}$", "12 cm^2", "1.2", "about 1.2e2"]),
    ],
    "gold answers": [
        (gold, ["\\boxed{5}"], ["\\boxed{6}"])
        for gold in (
            "$\\boxed{5}$", "5.", "'5'", "[5]", "['5']", "$5$", "\\[5\\]", "5 apples", "Answer: 5", "The answer is 5.",
            "5/1", "+5", "\\textbf{(C)}\\ 5", "5\\,.", "x = 5", "So she has 5.\n#### 5",
        )
    ],
}

UNREADABLE = [
    "", "  ", "None", "null", "proof", "\\text{Proof.}", "-", "?", "N/A", "see the solution", "no idea at all", "{", "$$",
]
# fmt: on


def rows() -> Iterator[tuple[str, str, str, float]]:
    """Kind, gold answer, completion and what it is worth."""
    for kinds, form in ((BOXED, "So the answer is $\\boxed{{{}}}$."), (WRITTEN, "{}")):
        for kind, table in kinds.items():
            for gold, right, wrong in table:
                yield from ((kind, gold, form.format(text), 1.0) for text in right)
                yield from ((kind, gold, form.format(text), 0.0) for text in wrong)
