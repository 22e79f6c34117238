"""The kinds of arithmetic problem: each gives a question, and an expression whose value is the answer."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from tunesmith.data.samples.draws import Draws

__all__ = ["KINDS", "Kind", "Operands", "said", "value_of"]


class Operands:
    """Draws numbers; the main operand of a held-out problem comes from a part of its range of its own.

    The middle fifth of the range of every main operand belongs to the test and occurs in no problem of
    the other splits as the main operand.
    """

    def __init__(self, draws: Draws, *, held: bool) -> None:
        self.draws = draws
        self._held = held

    def main(self, low: int, high: int) -> int:
        """The main operand."""
        span = high - low + 1
        first, n_held = low + 2 * span // 5, max(1, span // 5)
        held = range(first, first + n_held)
        rest = [*range(low, held.start), *range(held.stop, high + 1)]
        return self.draws.pick(held) if self._held else self.draws.pick(rest)

    def other(self, low: int, high: int) -> int:
        """Any other operand."""
        return self.draws.number(low, high)

    def name(self) -> str:
        """Somebody."""
        return self.draws.pick(
            ("Ada", "Ben", "Carla", "David", "Elena", "Hugo", "Iris", "Jonas", "Nina", "Omar")
        )

    def thing(self) -> str:
        """Things that are counted, in the plural."""
        return self.draws.pick(
            ("apples", "books", "candles", "coins", "eggs", "marbles", "pens", "stamps", "tickets")
        )


Made = tuple[str, str]


@dataclass(frozen=True)
class Kind:
    """A kind of problem.

    Attributes:
        level: 1 (one step, small numbers) to 5 (several steps, or powers and equations).
        make: question and expression.
    """

    name: str
    level: int
    make: Callable[[Operands], Made]


def value_of(expression: str) -> Fraction:
    """The exact value of an expression of numbers, + - * / // % **, brackets, gcd(a, b) and lcm(a, b).

    Raises:
        ValueError: something else stands in it.
    """
    return _value(ast.parse(expression, mode="eval").body)


def _value(node: ast.AST) -> Fraction:
    match node:
        case ast.Constant(value=int(number)):
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner)
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATIONS[type(op)](_value(left), _value(right))
        case ast.Call(func=ast.Name(id=("gcd" | "lcm") as name), args=args):
            numbers = [int(_value(arg)) for arg in args]
            return Fraction(math.gcd(*numbers) if name == "gcd" else math.lcm(*numbers))
    raise ValueError(ast.unparse(node))


_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: Fraction(a // b),
    ast.Mod: lambda a, b: a % b,
    ast.Pow: lambda a, b: Fraction(a ** int(b)),
}


def said(value: Fraction, kind: str) -> str:
    """A value as an answer: a whole number, a fraction in lowest terms, or a finite decimal."""
    if value.denominator == 1:
        return str(value.numerator)
    if kind.startswith("fraction"):
        return f"{value.numerator}/{value.denominator}"
    for places in range(1, 5):
        scaled = value * 10**places
        if scaled.denominator == 1:
            digits = f"{abs(scaled.numerator):0{places + 1}d}"
            return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
    raise ValueError(f"{value} has no short decimal form")


def _tens(number: int) -> str:
    """Tenths as a decimal: 35 -> "3.5"."""
    return f"{number // 10}.{number % 10}"


def _add(o: Operands) -> Made:
    a, b = o.main(10, 60), o.other(2, 40)
    return o.draws.pick(
        (f"What is {a} + {b}?", f"Add {a} and {b}.", f"{a} plus {b} is what?")
    ), f"{a} + {b}"


def _subtract(o: Operands) -> Made:
    a = o.main(20, 90)
    b = o.other(2, a - 1)
    return o.draws.pick(
        (f"What is {a} - {b}?", f"Subtract {b} from {a}.", f"{a} minus {b} is what?")
    ), f"{a} - {b}"


def _times(o: Operands) -> Made:
    a, b = o.main(2, 21), o.other(2, 12)
    return o.draws.pick(
        (f"What is {a} * {b}?", f"Multiply {a} by {b}.", f"{a} times {b} is what?")
    ), f"{a} * {b}"


def _divide(o: Operands) -> Made:
    b, c = o.main(3, 32), o.other(2, 12)
    return o.draws.pick((f"What is {b * c} / {b}?", f"Divide {b * c} by {b}.")), f"{b * c} / {b}"


def _have(o: Operands) -> Made:
    a, b, name, thing = o.main(12, 60), o.other(2, 40), o.name(), o.thing()
    return (
        f"{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have now?",
        f"{a} + {b}",
    )


def _give(o: Operands) -> Made:
    a, name, thing = o.main(20, 90), o.name(), o.thing()
    b = o.other(3, a - 3)
    return (
        f"{name} had {a} {thing} and gave {b} of them away. How many {thing} are left?",
        f"{a} - {b}",
    )


def _add_large(o: Operands) -> Made:
    a, b = o.main(120, 980), o.other(105, 990)
    return o.draws.pick((f"What is {a} + {b}?", f"Find the sum of {a} and {b}.")), f"{a} + {b}"


def _below_zero(o: Operands) -> Made:
    a = o.main(5, 80)
    b = o.other(a + 1, a + 70)
    return o.draws.pick((f"What is {a} - {b}?", f"Work out {a} minus {b}.")), f"{a} - {b}"


def _times_one(o: Operands) -> Made:
    a, b = o.main(13, 98), o.other(3, 9)
    return o.draws.pick((f"What is {a} * {b}?", f"Find the product of {a} and {b}.")), f"{a} * {b}"


def _remainder(o: Operands) -> Made:
    a, b = o.main(30, 200), o.other(3, 12)
    return (o.draws.pick((
        f"What is the remainder when {a} is divided by {b}?", f"Divide {a} by {b}. What remains?")),
        f"{a} % {b}")  # fmt: skip


def _share(o: Operands) -> Made:
    b, c, name, thing = o.main(3, 22), o.other(3, 12), o.name(), o.thing()
    return (
        f"{name} shares {b * c} {thing} equally among {b} friends. How many {thing} does each friend get?",
        f"{b * c} / {b}",
    )


def _boxes(o: Operands) -> Made:
    a, b, thing = o.main(4, 33), o.other(3, 12), o.thing()
    return (
        f"There are {a} boxes with {b} {thing} each. How many {thing} are there in all?",
        f"{a} * {b}",
    )


def _times_two(o: Operands) -> Made:
    a, b = o.main(12, 98), o.other(12, 49)
    return o.draws.pick((f"What is {a} * {b}?", f"Multiply {a} by {b}.")), f"{a} * {b}"


def _order(o: Operands) -> Made:
    a, b, c = o.main(5, 94), o.other(3, 12), o.other(3, 12)
    return o.draws.pick(
        (f"What is {a} + {b} * {c}?", f"Work out {a} + {b} * {c}.")
    ), f"{a} + {b} * {c}"


def _percent(o: Operands) -> Made:
    a, b = o.main(1, 50) * 20, o.draws.pick((5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 80))
    return o.draws.pick((f"What is {b}% of {a}?", f"Find {b} percent of {a}.")), f"{b} * {a} / 100"


def _average(o: Operands) -> Made:
    mean, step, shift = o.main(10, 90), o.other(1, 9), o.other(1, 5)
    a, b = mean - step, mean + step + shift
    return (
        f"What is the average of {a}, {b} and {mean - shift}?",
        f"({a} + {b} + {mean - shift}) / 3",
    )


def _missing(o: Operands) -> Made:
    a, x = o.main(10, 150), o.other(5, 90)
    return (o.draws.pick((
        f"Which number must be added to {a} to get {a + x}?", f"{a} + x = {a + x}. What is x?")),
        f"{a + x} - {a}")  # fmt: skip


def _minutes(o: Operands) -> Made:
    hours, minutes = o.main(1, 23), o.other(1, 59)
    unit = "hour" if hours == 1 else "hours"
    ending = "minute" if minutes == 1 else "minutes"
    return (
        f"How many minutes are {hours} {unit} and {minutes} {ending}?",
        f"{hours} * 60 + {minutes}",
    )


def _brackets(o: Operands) -> Made:
    a, b, c = o.main(6, 60), o.other(2, 30), o.other(3, 12)
    return o.draws.pick(
        (f"What is ({a} + {b}) * {c}?", f"Work out {c} * ({a} + {b}).")
    ), f"({a} + {b}) * {c}"


def _fractions(o: Operands) -> Made:
    b, d = o.main(3, 17), o.other(2, 9)
    a, c = o.other(1, b - 1), o.other(1, max(1, d - 1))
    return f"What is {a}/{b} + {c}/{d}? Give the answer in lowest terms.", f"{a} / {b} + {c} / {d}"


def _divisor(o: Operands) -> Made:
    k, a, b = o.main(2, 26), o.other(2, 9), o.other(2, 9)
    b += a == b
    return f"What is the greatest common divisor of {k * a} and {k * b}?", f"gcd({k * a}, {k * b})"


def _multiple(o: Operands) -> Made:
    a, b = o.main(4, 30), o.other(4, 15)
    b += a == b
    return f"What is the least common multiple of {a} and {b}?", f"lcm({a}, {b})"


def _decimals(o: Operands) -> Made:
    a, b = o.main(15, 195), o.other(11, 99)
    return o.draws.pick(
        (f"What is {_tens(a)} + {_tens(b)}?", f"Add {_tens(a)} and {_tens(b)}.")
    ), f"{a} / 10 + {b} / 10"


def _change(o: Operands) -> Made:
    a, b, name, thing = o.main(2, 16), o.other(2, 9), o.name(), o.thing()
    paid = (a * b // 10 + 1) * 10
    return (
        f"{name} buys {a} {thing} at {b} euros each and pays with {paid} euros. How many euros does {name} get back?",
        f"{paid} - {a} * {b}",
    )


def _perimeter(o: Operands) -> Made:
    a = o.main(4, 60)
    b = o.other(3, min(a - 1, 40))
    return (
        f"A rectangle is {a} metres long and {b} metres wide. What is its perimeter in metres?",
        f"2 * ({a} + {b})",
    )


def _area(o: Operands) -> Made:
    a = o.main(4, 60)
    b = o.other(3, min(a - 1, 20))
    return (
        f"A rectangle is {a} metres long and {b} metres wide. What is its area in square metres?",
        f"{a} * {b}",
    )


def _power(o: Operands) -> Made:
    a, b = o.main(2, 26), o.other(2, 3)
    return o.draws.pick((f"What is {a} to the power of {b}?", f"What is {a}^{b}?")), f"{a} ** {b}"


def _price(o: Operands) -> Made:
    a, b = o.main(1, 40) * 20, o.draws.pick((5, 10, 20, 25, 30, 50))
    goes, sign = o.draws.pick((("rises", "+"), ("falls", "-")))
    return (
        f"A price of {a} euros {goes} by {b}%. What is the new price in euros?",
        f"{a} {sign} {a} * {b} / 100",
    )


def _fractions_times(o: Operands) -> Made:
    b, d = o.main(3, 22), o.other(3, 9)
    a, c = o.other(1, b - 1), o.other(1, d - 1)
    return (
        f"What is {a}/{b} * {c}/{d}? Give the answer in lowest terms.",
        f"({a} / {b}) * ({c} / {d})",
    )


def _travel(o: Operands) -> Made:
    speed, hours = o.main(6, 45) * 2, o.other(2, 9)
    return (
        f"A train travels at {speed} kilometres per hour for {hours} and a half hours. How many kilometres does it go?",
        f"{speed} * {2 * hours + 1} / 2",
    )


def _equation(o: Operands) -> Made:
    x, a, b = o.main(3, 62), o.other(2, 9), o.other(1, 40)
    return (o.draws.pick((
        f"Solve {a}x + {b} = {a * x + b} for x.", f"If {a}x + {b} = {a * x + b}, what is x?")),
        f"({a * x + b} - {b}) / {a}")  # fmt: skip


def _gauss(o: Operands) -> Made:
    n = o.main(8, 150)
    return f"What is the sum of the whole numbers from 1 to {n}?", f"{n} * ({n} + 1) / 2"


def _mixed(o: Operands) -> Made:
    a, b, c, d = o.main(12, 60), o.other(3, 9), o.other(10, 60), o.other(3, 9)
    return f"What is {a} * {b} - {c} * {d}?", f"{a} * {b} - {c} * {d}"


_LEVELS: tuple[tuple[Callable[[Operands], Made], ...], ...] = (
    (_add, _subtract, _times, _divide, _have, _give),
    (_add_large, _below_zero, _times_one, _remainder, _share, _boxes),
    (_times_two, _order, _percent, _average, _missing, _minutes),
    (_brackets, _fractions, _divisor, _multiple, _decimals, _change, _perimeter, _area),
    (_power, _price, _fractions_times, _travel, _equation, _gauss, _mixed),
)
KINDS = tuple(
    Kind(make.__name__.strip("_").replace("_", "-"), level, make)
    for level, makes in enumerate(_LEVELS, 1)
    for make in makes
)
