"""Well-known algorithms on numbers, written for the code documentation set; its builder runs every example."""

from __future__ import annotations

from collections.abc import Sequence


def greatest_common_divisor(first: int, second: int) -> int:
    """Return the greatest common divisor of two whole numbers, by Euclid's algorithm.

    >>> greatest_common_divisor(84, 36)
    12
    """
    while second:
        first, second = second, first % second
    return abs(first)


def primes_up_to(limit: int) -> list[int]:
    """Return all primes up to `limit`, by the sieve of Eratosthenes.

    >>> primes_up_to(20)
    [2, 3, 5, 7, 11, 13, 17, 19]
    """
    is_prime = [True] * (limit + 1)
    found = []
    for number in range(2, limit + 1):
        if is_prime[number]:
            found.append(number)
            for multiple in range(number * number, limit + 1, number):
                is_prime[multiple] = False
    return found


def prime_factors(number: int) -> list[int]:
    """Return the prime factors of a positive number in ascending order, repeated as often as they divide it.

    >>> prime_factors(360)
    [2, 2, 2, 3, 3, 5]
    """
    factors = []
    divisor = 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    if number > 1:
        factors.append(number)
    return factors


def fibonacci(count: int) -> list[int]:
    """Return the first `count` Fibonacci numbers, beginning with 0 and 1.

    >>> fibonacci(8)
    [0, 1, 1, 2, 3, 5, 8, 13]
    """
    numbers: list[int] = []
    current, following = 0, 1
    for _ in range(count):
        numbers.append(current)
        current, following = following, current + following
    return numbers


def to_roman(number: int) -> str:
    """Write a number from 1 to 3999 in Roman numerals.

    >>> to_roman(1994)
    'MCMXCIV'
    """
    values = [1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1]
    signs = ["M", "CM", "D", "CD", "C", "XC", "L", "XL", "X", "IX", "V", "IV", "I"]
    written = ""
    for value, sign in zip(values, signs, strict=True):
        written += sign * (number // value)
        number %= value
    return written


def from_roman(numeral: str) -> int:
    """Return the value of a Roman numeral.

    >>> from_roman("MCMXCIV")
    1994
    """
    values = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
    total = 0
    for sign, following in zip(numeral, [*numeral[1:], ""], strict=True):
        value = values[sign]
        total += -value if following and values[following] > value else value
    return total


def in_base(number: int, base: int) -> str:
    """Write a number that is not negative in a base from 2 to 16.

    >>> in_base(255, 16)
    'ff'
    """
    digits = ""
    while True:
        number, digit = divmod(number, base)
        digits = "0123456789abcdef"[digit] + digits
        if number == 0:
            return digits


def digit_sum(number: int) -> int:
    """Return the sum of the decimal digits of a number; its sign is ignored.

    >>> digit_sum(-907)
    16
    """
    total, rest = 0, abs(number)
    while rest:
        total += rest % 10
        rest //= 10
    return total


def luhn_is_valid(digits: str) -> bool:
    """Tell whether the last digit is the right check digit by the Luhn formula.

    >>> luhn_is_valid("79927398713")
    True
    """
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def collatz_steps(number: int) -> int:
    """Return how many steps lead from a positive number to 1, halving even numbers and taking 3n + 1 of odd ones.

    >>> collatz_steps(6)
    8
    """
    steps = 0
    while number != 1:
        number = number // 2 if number % 2 == 0 else 3 * number + 1
        steps += 1
    return steps


def is_leap_year(year: int) -> bool:
    """Tell whether a year of the Gregorian calendar has 366 days.

    >>> [year for year in (1900, 2000, 2023, 2024) if is_leap_year(year)]
    [2000, 2024]
    """
    if year % 100 == 0:
        return year % 400 == 0
    return year % 4 == 0


def pascal_triangle(n_rows: int) -> list[list[int]]:
    """Return the first rows of Pascal's triangle.

    >>> pascal_triangle(4)
    [[1], [1, 1], [1, 2, 1], [1, 3, 3, 1]]
    """
    rows: list[list[int]] = []
    for _ in range(n_rows):
        above = rows[-1] if rows else []
        row = [left + right for left, right in zip([0, *above], [*above, 0], strict=True)]
        rows.append(row if rows else [1])
    return rows


def fewest_coins(coins: Sequence[int], amount: int) -> int | None:
    """Return how few coins make up `amount`, each as often as needed, or None if it cannot be done.

    >>> fewest_coins([1, 4, 5], 8)
    2
    """
    best: list[int | None] = [0]
    for target in range(1, amount + 1):
        options = [best[target - coin] for coin in coins if coin <= target]
        counts = [count for count in options if count is not None]
        best.append(min(counts) + 1 if counts else None)
    return best[amount]


def median(numbers: Sequence[float]) -> float:
    """Return the middle number, or the average of the two in the middle.

    >>> median([7, 1, 3]), median([4, 1, 3, 2])
    (3, 2.5)
    """
    ordered = sorted(numbers)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def integer_root(number: int) -> int:
    """Return the largest whole number whose square is not larger than `number`, by Newton's method.

    >>> integer_root(80)
    8
    """
    if number < 2:
        return number
    guess = number
    while guess * guess > number:
        guess = (guess + number // guess) // 2
    return guess


def power_modulo(base: int, exponent: int, modulus: int) -> int:
    """Return base to the power of exponent modulo `modulus`, by repeated squaring.

    >>> power_modulo(3, 20, 7)
    2
    """
    result = 1
    while exponent:
        if exponent % 2:
            result = result * base % modulus
        base = base * base % modulus
        exponent //= 2
    return result


def overlaps(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Tell whether two ranges, given by their first and last number, share a number.

    >>> overlaps((1, 4), (4, 9)), overlaps((1, 3), (5, 6))
    (True, False)
    """
    start = max(first[0], second[0])
    end = min(first[1], second[1])
    return start <= end


def clock_time(seconds: int) -> str:
    """Write a number of seconds as hours, minutes and seconds.

    >>> clock_time(3725)
    '1:02:05'
    """
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def knapsack(weights: Sequence[int], values: Sequence[int], capacity: int) -> int:
    """Return the highest total value of things whose weights fit into `capacity`, each taken at most once.

    >>> knapsack([3, 4, 5], [30, 50, 60], 8)
    90
    """
    best = [0] * (capacity + 1)
    for weight, value in zip(weights, values, strict=True):
        for room in range(capacity, weight - 1, -1):
            best[room] = max(best[room], best[room - weight] + value)
    return best[capacity]
