"""Conversations about a customer's own orders: every answer follows from the order and the shop's rules."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass, replace

from tunesmith.data.samples.draws import Draws

__all__ = ["KINDS", "Talk", "working_days_after"]

INTRO = "You are the support of Fernhill, a shop for camping gear."
RETURN_DAYS, REFUND_DAYS, INVOICE_DAYS = 30, 7, 14
SHIPPING_CENTS, FREE_FROM_CENTS = 490, 6_000
ITEMS = {
    "tent": 14_900, "sleeping bag": 8_950, "backpack": 11_500, "gas stove": 3_990, "headlamp": 2_495,
    "rain jacket": 9_900, "camping chair": 4_250, "cooking pot": 2_750, "mattress": 6_490, "lantern": 1_990,
    "water bottle": 1_650, "hammock": 5_400,
}  # fmt: skip
"""Item -> its price in cents."""
Turns = list[tuple[str, str]]


@dataclass(frozen=True)
class Talk:
    """A conversation: a system message, then questions with their answers."""

    topic: str
    system: str
    turns: Turns


@dataclass(frozen=True)
class _Order:
    """An order as the shop sees it today; `day` is when it was placed, sent or delivered."""

    number: int
    item: str
    state: str
    day: datetime.date
    today: datetime.date

    @property
    def line(self) -> str:
        """As it stands in the system message."""
        states = {
            "placed": f"placed on {self.day}, not sent yet",
            "sent": f"sent on {self.day} by standard delivery",
            "delivered": f"delivered on {self.day}",
        }
        return f"Order {self.number}: {self.item}, {euros(ITEMS[self.item])} euros, {states[self.state]}."


def euros(cents: int) -> str:
    """Cents as euros: 490 -> "4.90"."""
    return f"{cents // 100}.{cents % 100:02d}"


def spelled(day: datetime.date) -> str:
    """ "4 March 2025"."""
    return f"{day.day} {day:%B} {day.year}"


def working_days_after(day: datetime.date, count: int) -> datetime.date:
    """The day after so many days from Monday to Friday; holidays are not known."""
    while count:
        day += datetime.timedelta(1)
        count -= day.weekday() < 5
    return day


def _drawn(d: Draws, *states: str, most_days: int = 60) -> _Order:
    state = d.pick(states)
    today = datetime.date(2025, 1, 8) + datetime.timedelta(d.number(0, 330))
    days = d.number(1, most_days) if state == "delivered" else d.number(0, 2)
    return _Order(
        d.number(40_000, 79_999),
        d.pick(list(ITEMS)),
        state,
        today - datetime.timedelta(days),
        today,
    )


def _talk(topic: str, orders: list[_Order], turns: Turns) -> Talk:
    lines = [INTRO, f"Today is {orders[0].today}.", *(order.line for order in orders)]
    return Talk(topic, "\n".join(lines), turns)


def _where(d: Draws, at: int) -> Talk:
    o = _drawn(d, "placed", "sent", "delivered", most_days=6)
    asked = (
        f"Where is my order {o.number}?",
        f"When will my {o.item} arrive?",
        f"What is the status of order {o.number}?",
        f"I am waiting for my {o.item}. Where is it?", f"Has order {o.number} been sent?",
        f"Could you check how far my {o.item} is?", f"Can you tell me about the delivery of order {o.number}?",
    )[at]  # fmt: skip
    if o.state == "placed":
        answer = (
            f"Order {o.number} has not been sent yet. "
            f"You get a tracking link by e-mail as soon as it is."
        )
    elif o.state == "sent":
        by = spelled(working_days_after(o.day, 5))
        answer = (
            f"Order {o.number} was sent on {spelled(o.day)}. "
            f"Standard delivery takes 3 to 5 working days, so it should arrive by {by}."
        )
    else:
        answer = (
            f"Order {o.number} was delivered on {spelled(o.day)}. If you cannot find it, "
            f"please ask your neighbours and then call us."
        )
    return _talk("order_status", [o], [(asked, answer)])


def _return(d: Draws, at: int) -> Talk:
    o = _drawn(d, "delivered", "delivered", "sent")
    asked = (
        f"Can I still return my {o.item}?", f"Is it too late to send the {o.item} back?",
        f"I want to return order {o.number}. Is that possible?", f"Until when can I return the {o.item}?",
        f"return {o.item} possible?", f"Am I still in time to return order {o.number}?",
        f"I have not used the {o.item}. May I give it back?",
    )[at]  # fmt: skip
    end = o.day + datetime.timedelta(RETURN_DAYS)
    if o.state == "sent":
        answer = (
            f"You can return the {o.item}, unused, "
            f"within {RETURN_DAYS} days after it has been delivered. It is on its way to you now."
        )
    elif o.today <= end:
        answer = (
            f"You can return the {o.item}, unused, until {spelled(end)}: it was delivered on {spelled(o.day)}. "
            "The free label is in your account under Orders."
        )
    else:
        answer = (
            f"I am sorry, it is too late. The {o.item} was delivered on {spelled(o.day)}, "
            f"and the {RETURN_DAYS} days for returns ended on {spelled(end)}."
        )
    return _talk("order_return", [o], [(asked, answer)])


def _cancel(d: Draws, at: int) -> Talk:
    o = _drawn(d, "placed", "sent")
    asked = (
        f"Please cancel order {o.number}.",
        f"I no longer need the {o.item}. Can I cancel?",
        f"Can I still cancel order {o.number}?",
        f"How do I cancel the {o.item}?", f"cancel {o.number}", f"I would like to stop order {o.number}.",
        f"Is it still possible to call off the {o.item}?",
    )[at]  # fmt: skip
    if o.state == "placed":
        answer = (
            f"Order {o.number} has not been sent, so you can still cancel it: open your account, "
            f"choose Orders and press Cancel."
        )
    else:
        answer = (
            f"Order {o.number} was sent on {spelled(o.day)} and can no longer be cancelled. "
            "Please refuse the parcel, or return it for free when you have it."
        )
    return _talk("order_cancel", [o], [(asked, answer)])


def _address(d: Draws, at: int) -> Talk:
    o = _drawn(d, "placed", "sent")
    asked = (
        f"Can order {o.number} go to another address?", f"I gave the wrong address for the {o.item}.",
        f"Please change the address of order {o.number}.",
        f"Can you redirect my {o.item}?",
        f"new address for {o.number}",
        f"I moved. Can the {o.item} be sent to my new home?", f"How do I correct the street for order {o.number}?",
    )[at]  # fmt: skip
    if o.state == "placed":
        answer = (
            f"Order {o.number} has not been sent, "
            f"so you can still change the address in your account under Orders."
        )
    else:
        answer = (
            f"I am sorry, order {o.number} was sent on {spelled(o.day)}, "
            f"and we cannot redirect a parcel that is on its way."
        )
    return _talk("order_address", [o], [(asked, answer)])


def _warranty(d: Draws, at: int) -> Talk:
    o = _drawn(d, "delivered", most_days=2_200)
    asked = (
        f"My {o.item} is broken. Is it still under warranty?",
        f"The {o.item} from order {o.number} has a fault. Am I covered?",
        f"Does the warranty still cover my {o.item}?", f"{o.item} faulty, warranty?",
        f"Until when does the warranty of my {o.item} last?", f"Can I still make a claim for the {o.item}?",
        f"Something is wrong with the {o.item}. Do you repair it for free?",
    )[at]  # fmt: skip
    years = 5 if o.item == "backpack" else 2
    end = o.day.replace(
        year=o.day.year + years, day=min(o.day.day, 28) if o.day.month == 2 else o.day.day
    )
    since = f"it was delivered on {spelled(o.day)} and has a warranty of {years} years, which"
    if o.today <= end:
        answer = (
            f"Your {o.item} is still under warranty: {since} lasts until {spelled(end)}. "
            "Please send us a photo or short description of the fault."
        )
    else:
        answer = (
            f"I am sorry, your {o.item} is no longer under warranty: {since} ended on {spelled(end)}. "
            "Our workshop may be able to repair it; please send us photos."
        )
    return _talk("order_warranty", [o], [(asked, answer)])


def _invoice(d: Draws, at: int) -> Talk:
    o = _drawn(d, "delivered", most_days=28)
    asked = (
        f"By when do I have to pay the invoice for order {o.number}?", f"When is the bill for the {o.item} due?",
        f"Is the invoice of order {o.number} overdue?", f"invoice {o.number} due date?",
        f"Do I still have time to pay for the {o.item}?", f"How long may I take to pay order {o.number}?",
        f"What is the last day to pay for my {o.item}?",
    )[at]  # fmt: skip
    end = o.day + datetime.timedelta(INVOICE_DAYS)
    late = " That day has passed, so please pay it now." if o.today > end else ""
    answer = (
        f"The invoice is due {INVOICE_DAYS} days after delivery. "
        f"Order {o.number} was delivered on {spelled(o.day)}, so it is due on {spelled(end)}.{late}"
    )
    return _talk("order_invoice", [o], [(asked, answer)])


def _refund(d: Draws, at: int) -> Talk:
    o = _drawn(d, "delivered", most_days=4)
    o = replace(o, day=o.day - datetime.timedelta(7))
    back = o.today - datetime.timedelta(d.number(0, 3))
    asked = (
        f"My return of the {o.item} reached you on {spelled(back)}. When do I get my money?",
        f"You got my {o.item} back on {spelled(back)}. By when will I be refunded?",
        f"The return for order {o.number} arrived at your warehouse on {spelled(back)}. Where is the refund?",
        f"The {o.item} that I returned was received on {spelled(back)}. How long does the refund take?",
        f"refund for {o.number}? it arrived at your place on {spelled(back)}",
        f"According to the tracking, my returned {o.item} arrived on {spelled(back)}. When is the money paid?",
        f"I sent back order {o.number}, and it was with you on {spelled(back)}. Until when must I wait for the money?",
    )[at]  # fmt: skip
    end = spelled(back + datetime.timedelta(REFUND_DAYS))
    answer = (
        f"We refund within {REFUND_DAYS} days after a return has arrived, "
        f"so you have your {euros(ITEMS[o.item])} euros by {end}, paid the way you paid for the order."
    )
    return _talk("order_refund", [o], [(asked, answer)])


def _basket(d: Draws, at: int) -> Talk:
    cents = d.number(15, 119) * 100 + d.pick((0, 50, 90))
    asked = (
        f"My basket is {euros(cents)} euros. What do I pay in all with standard delivery?",
        f"How much is delivery for an order of {euros(cents)} euros?",
        f"Is shipping free if I order for {euros(cents)} euros?", f"order of {euros(cents)} euros, shipping?",
        f"Do I pay postage on {euros(cents)} euros?",
        f"What does it cost to have {euros(cents)} euros worth of gear sent?",
        f"I am ordering for {euros(cents)} euros. What comes on top?",
    )[at]  # fmt: skip
    if cents >= FREE_FROM_CENTS:
        answer = f"Standard delivery is free from 60 euros, so you pay {euros(cents)} euros in all."
    else:
        total = euros(cents + SHIPPING_CENTS)
        left = euros(FREE_FROM_CENTS - cents)
        answer = (
            f"Standard delivery costs 4.90 euros, so you pay {total} euros in all. "
            f"From 60 euros it is free; you are {left} euros below that."
        )
    return Talk("basket", INTRO, [(asked, answer)])


def _points(d: Draws, at: int) -> Talk:
    points = d.number(1, 40) * 100
    asked = (
        f"I have {points} club points. What are they worth?", f"How many euros are {points} points?",
        f"What can I get for {points} points?",
        f"{points} points in euros?",
        f"How much do I save with {points} club points?",
        f"I have collected {points}. How much money is that?", f"If I use {points} points, how much less do I pay?",
    )[at]  # fmt: skip
    answer = (
        f"100 points are worth 5 euros, so {points} points are worth {points // 20} euros. "
        f"You can use them in the basket."
    )
    return Talk("points", INTRO, [(asked, answer)])


def _which(d: Draws, at: int) -> Talk:
    """The customer has two orders and does not say which one is meant."""
    first = _drawn(d, "placed", "sent")
    other = d.pick([name for name in ITEMS if name != first.item])
    flipped = "sent" if first.state == "placed" else "placed"
    second = _Order(first.number + d.number(3, 90), other, flipped, first.day, first.today)
    meant = d.pick((first, second))
    asked = (
        "Please cancel my order.", "Can I still cancel my order?", "I want to cancel.", "cancel my order pls",
        "How do I cancel what I ordered?", "I have changed my mind about my order.", "Would you stop my order, please?",
    )[at]  # fmt: skip
    both = f"{first.number} ({first.item}) and {second.number} ({second.item})"
    back = f"You have two orders: {both}. Which one do you mean?"
    said = d.pick(
        (
            f"The {meant.item}.",
            f"{meant.number}",
            f"I mean the {meant.item}.",
            f"Order {meant.number}, please.",
        )
    )
    if meant.state == "placed":
        answer = (
            f"Order {meant.number} has not been sent, so you can still cancel it: "
            f"open your account, choose Orders and press Cancel."
        )
    else:
        answer = (
            f"Order {meant.number} was sent on {spelled(meant.day)} and can no longer be cancelled. "
            "Please refuse the parcel, or return it for free when you have it."
        )
    return _talk("which_order", [first, second], [(asked, back), (said, answer)])


KINDS: tuple[Callable[[Draws, int], Talk], ...] = (
    _where, _return, _cancel, _address, _warranty, _invoice, _refund, _basket, _points, _which,
)  # fmt: skip
"""Each draws an order and asks about it in one of seven wordings."""
