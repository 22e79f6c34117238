"""Texts with personal data and secrets planted in them, by rules of their own.

Nothing here is taken from the finder: check digits are computed from the published rules, tokens are
drawn letter by letter, and the texts around them are sentences, SQL, code, logs and JSON.
"""

from __future__ import annotations

import json
import random
import string
from dataclasses import dataclass

DIGITS = string.digits
UPPER = string.ascii_uppercase
ALNUM = string.ascii_letters + DIGITS
HEX = "0123456789abcdef"
URLSAFE = ALNUM + "-_"


@dataclass(frozen=True)
class Planted:
    """A text, what stands in it, and what that is."""

    text: str
    value: str
    kind: str
    detail: str

    @property
    def start(self) -> int:
        return self.text.index(self.value)


def draw(rng: random.Random, letters: str, n: int) -> str:
    return "".join(rng.choice(letters) for _ in range(n))


def token(rng: random.Random, letters: str, n: int) -> str:
    """Characters that hold at least two digits and two letters, as long random tokens do."""
    while True:
        made = draw(rng, letters, n)
        if sum(c.isdigit() for c in made) >= 2 and sum(c.isalpha() for c in made) >= 2:
            return made


# --- check digits, from their specifications ---------------------------------------------------------


def luhn(body: str) -> str:
    total = 0
    for place, digit in enumerate(reversed(body)):
        doubled = int(digit) * 2 if place % 2 == 0 else int(digit)
        total += doubled - 9 if doubled > 9 else doubled
    return body + str(-total % 10)


def iban(country: str, bban: str) -> str:
    as_number = "".join(str(int(c, 36)) for c in f"{bban}{country}00")
    return f"{country}{98 - int(as_number) % 97:02d}{bban}"


def grouped(text: str, sizes: int | tuple[int, ...], by: str) -> str:
    if isinstance(sizes, int):
        return by.join(text[at : at + sizes] for at in range(0, len(text), sizes))
    parts, at = [], 0
    for size in sizes:
        parts.append(text[at : at + size])
        at += size
    return by.join(parts)


def weighted(digits: str, weights: list[int]) -> int:
    return sum(int(d) * w for d, w in zip(digits, weights, strict=True))


def ean13(body: str) -> str:
    return body + str(-weighted(body, [1, 3] * 6) % 10)


def verhoeff(body: str) -> str:
    def multiply(a: int, b: int) -> int:
        """Product in the dihedral group of order 10."""
        if a < 5:
            return (a + b) % 5 if b < 5 else 5 + (a + b) % 5
        return 5 + (a - b) % 5 if b < 5 else (a - b) % 5

    step = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]

    def permuted(digit: int, times: int) -> int:
        for _ in range(times % 8):
            digit = step[digit]
        return digit

    check = 0
    for place, digit in enumerate(reversed(body), start=1):
        check = multiply(check, permuted(int(digit), place))
    inverse = next(d for d in range(10) if multiply(check, d) == 0)
    return body + str(inverse)


def cpf(rng: random.Random) -> str:
    body = draw(rng, DIGITS, 9)
    for n in (10, 11):
        rest = weighted(body, list(range(n, 1, -1))) * 10 % 11 % 10
        body += str(rest)
    return body


def codice_fiscale(rng: random.Random) -> str:
    odd = dict(
        zip(
            DIGITS + UPPER,
            [
                1,
                0,
                5,
                7,
                9,
                13,
                15,
                17,
                19,
                21,
                1,
                0,
                5,
                7,
                9,
                13,
                15,
                17,
                19,
                21,
                2,
                4,
                18,
                20,
                11,
                3,
                6,
                8,
                12,
                14,
                16,
                10,
                22,
                25,
                24,
                23,
            ],
            strict=True,
        )
    )
    even = {**{d: int(d) for d in DIGITS}, **{c: n for n, c in enumerate(UPPER)}}
    body = rng.choice(("RSSMRA", "BNCLCU", "VRDGPP", "FRRNNA"))
    body += f"{rng.randint(40, 99)}{rng.choice('ABCDEHLMPRST')}{rng.randint(1, 28):02d}"
    body += rng.choice(("H501", "F205", "L219", "A662"))
    total = sum(odd[c] if n % 2 == 0 else even[c] for n, c in enumerate(body))
    return body + UPPER[total % 26]


def national_ids(rng: random.Random) -> list[tuple[str, str, str]]:
    """(kind, number, word that stands before it where its form alone does not tell)."""
    y, m, d = rng.randint(50, 99), rng.randint(1, 12), rng.randint(1, 28)
    date = f"{y:02d}{m:02d}{d:02d}"
    number = draw(rng, DIGITS, 8)
    letters = "TRWAGMYFPDXBNJZSQVHLCKE"
    nie = rng.choice("XYZ") + draw(rng, DIGITS, 7)
    nir = f"{rng.choice('12')}{y:02d}{m:02d}{rng.randint(1, 95):02d}{rng.randint(1, 400):03d}{rng.randint(1, 400):03d}"
    nir += f"{97 - int(nir) % 97:02d}"
    pesel = f"{date}{draw(rng, DIGITS, 4)}"
    pesel += str(-weighted(pesel, [1, 3, 7, 9, 1, 3, 7, 9, 1, 3]) % 10)
    while True:
        bsn = draw(rng, "123456789", 8)
        last = weighted(bsn, list(range(9, 1, -1))) % 11
        if last < 10:
            bsn += str(last)
            break
    while True:
        nhs = draw(rng, "123456789", 9)
        last = 11 - weighted(nhs, list(range(10, 1, -1))) % 11
        if last != 10:
            nhs += str(last % 11)
            break
    ric = f"110101{rng.randint(1950, 2000)}{m:02d}{d:02d}{draw(rng, DIGITS, 3)}"
    ric += "10X98765432"[weighted(ric, [2 ** (17 - n) % 11 for n in range(17)]) % 11]
    hetu = f"{d:02d}{m:02d}{y:02d}"
    serial = f"{rng.randint(2, 899):03d}"
    hetu = f"{hetu}-{serial}" + "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(hetu + serial) % 31]
    aadhaar = verhoeff(rng.choice("23456789") + draw(rng, DIGITS, 10))
    ssn = f"{rng.randint(1, 665):03d}-{rng.randint(1, 99):02d}-{rng.randint(1, 9999):04d}"
    tax = cpf(rng)
    social = ean13(f"756{draw(rng, DIGITS, 9)}")
    sin = luhn(rng.choice("1234567") + draw(rng, DIGITS, 7))
    person = luhn(f"{date}{rng.randint(100, 999)}")
    niss = f"{date}{rng.randint(1, 997):03d}"
    niss += f"{97 - int(niss) % 97:02d}"
    return [
        ("us.ssn", ssn, ""),
        ("us.ssn", ssn.replace("-", ""), "social security number"),
        ("es.dni", number + letters[int(number) % 23], ""),
        ("es.nie", nie + letters[int(str("XYZ".index(nie[0])) + nie[1:]) % 23], ""),
        ("fr.nir", grouped(nir, (1, 2, 2, 2, 3, 3, 2), " "), ""),
        ("it.codicefiscale", codice_fiscale(rng), ""),
        ("br.cpf", f"{tax[:3]}.{tax[3:6]}.{tax[6:9]}-{tax[9:]}", ""),
        ("br.cpf", tax, "CPF"),
        ("nl.bsn", bsn, "BSN"),
        ("pl.pesel", pesel, "PESEL"),
        ("gb.nhs", grouped(nhs, (3, 3, 4), " "), "NHS number"),
        (
            "gb.nino",
            f"AB {draw(rng, DIGITS, 2)} {draw(rng, DIGITS, 2)} {draw(rng, DIGITS, 2)} C",
            "",
        ),
        ("cn.ric", ric, ""),
        ("fi.hetu", hetu, ""),
        ("in.aadhaar", grouped(aadhaar, 4, " "), ""),
        ("ch.ssn", f"{social[:3]}.{social[3:7]}.{social[7:11]}.{social[11:]}", ""),
        ("ca.sin", grouped(sin, 3, " "), "SIN"),
        ("se.personnummer", f"{person[:6]}-{person[6:]}", ""),
        ("be.nn", f"{niss[:2]}.{niss[2:4]}.{niss[4:6]}-{niss[6:9]}.{niss[9:]}", ""),
    ]


# --- values -------------------------------------------------------------------------------------------


def emails(rng: random.Random) -> list[str]:
    first, last = rng.choice(GIVEN).lower(), rng.choice(FAMILY).lower()
    n = rng.randint(1, 99)
    return [
        f"{first}.{last}@example.com",
        f"{first}{n}@gmail.com",
        f"{first[0]}_{last}+news{n}@mail.example.co.uk",
        f"{first}-{last}@sub.{last}-group.io",
        f"{first.upper()}.{last.upper()}@EXAMPLE.ORG",
        f"{last}{n}@müller-söhne.de",
        f"o'{last}@example.ie",
        f"{n}{first}@web.de",
    ]


def phones(rng: random.Random) -> list[tuple[str, bool]]:
    """(number, whether a word must stand before it)."""
    n = lambda k: draw(rng, DIGITS, k)  # noqa: E731
    area = rng.choice(("212", "415", "312", "617", "206", "305", "713"))
    two = lambda: f"{rng.randint(10, 99)}"  # noqa: E731
    return [
        (f"({area}) 555-{n(4)}", False),
        (f"{area}-555-{n(4)}", False),
        (f"{area}.736.{n(4)}", False),
        (f"+1 {area} 736 {n(4)}", False),
        (f"+1-{area}-555-01{n(2)}", False),
        (f"1-{area}-736-{n(4)}", False),
        (f"{area}736{n(4)}", True),
        (f"+44 20 7946 0{n(3)}", False),
        (f"020 7946 0{n(3)}", False),
        (f"07911 12{n(4)}", False),
        (f"+4479111{n(5)}", False),
        (f"+49 30 9018{n(2)}", False),
        (f"030 9018{n(3)}", False),
        (f"0171 23{n(5)}", False),
        (f"+49 (0)89 1234{n(3)}", False),
        (f"+33 6 {two()} {two()} {two()} {two()}", False),
        (f"06 {two()} {two()} {two()} {two()}", False),
        (f"+34 612 {n(3)} {n(3)}", False),
        (f"612 {n(3)} {n(3)}", True),
        (f"+39 347 {n(3)} {n(4)}", False),
        (f"+91 98765 {n(5)}", False),
        (f"98765{n(5)}", True),
        (f"+81 90-1234-{n(4)}", False),
        (f"+86 138 0013 {n(4)}", False),
        (f"+55 11 9{n(4)}-{n(4)}", False),
        (f"+61 412 {n(3)} {n(3)}", False),
        (f"+31 6 {n(8)}", False),
        (f"0049 30 9018{n(3)}", False),
    ]


def cards(rng: random.Random) -> list[str]:
    visa = luhn("4" + draw(rng, DIGITS, 14))
    master = luhn(rng.choice(("51", "55", "2221", "2720")).ljust(15, rng.choice(DIGITS)))
    amex = luhn(rng.choice(("34", "37")) + draw(rng, DIGITS, 12))
    discover = luhn("6011" + draw(rng, DIGITS, 11))
    jcb = luhn("3530" + draw(rng, DIGITS, 11))
    union = luhn("62" + draw(rng, DIGITS, 13))
    return [
        visa,
        grouped(visa, 4, " "),
        grouped(visa, 4, "-"),
        grouped(master, 4, " "),
        grouped(amex, (4, 6, 5), " "),
        amex,
        discover,
        grouped(jcb, 4, "-"),
        grouped(union, 4, " "),
    ]


def ibans(rng: random.Random) -> list[str]:
    n = lambda k: draw(rng, DIGITS, k)  # noqa: E731
    a = lambda k: draw(rng, UPPER, k)  # noqa: E731
    made = [
        iban("DE", n(18)),
        iban("GB", a(4) + n(14)),
        iban("NL", a(4) + n(10)),
        iban("FR", n(10) + draw(rng, UPPER + DIGITS, 11) + n(2)),
        iban("IT", a(1) + n(10) + n(12)),
        iban("AT", n(16)),
        iban("CH", n(17)),
        iban("PL", n(24)),
    ]
    return [*made, *(grouped(one, 4, " ") for one in made)]


def addresses_of_hosts(rng: random.Random) -> list[tuple[str, str]]:
    v4 = ".".join(str(rng.randint(11, 223)) for _ in range(4)).replace("127.", "128.", 1)
    groups = [f"{rng.randint(0x1000, 0xFFFF):x}" for _ in range(6)]
    mac = [f"{rng.randint(0, 255):02x}" for _ in range(6)]
    return [
        ("ip", v4),
        ("ip", f"192.168.{rng.randint(0, 255)}.{rng.randint(1, 254)}"),
        ("ip", f"10.0.{rng.randint(0, 255)}.{rng.randint(1, 254)}"),
        ("ip", "2001:db8:" + ":".join(groups)),
        ("ip", f"2001:db8::{groups[0]}:{groups[1]}"),
        ("ip", f"fe80::{groups[0]}:{groups[1]}:{groups[2]}"),
        ("mac", ":".join(mac)),
        ("mac", "-".join(mac).upper()),
    ]


GIVEN = (
    "Anna",
    "John",
    "Maria",
    "Peter",
    "Fatima",
    "Carlos",
    "Julia",
    "Wei",
    "Priya",
    "Thomas",
    "Elena",
    "Omar",
)
FAMILY = (
    "Schmidt",
    "Miller",
    "Garcia",
    "Rossi",
    "Dubois",
    "Nowak",
    "Kumar",
    "Chen",
    "Okafor",
    "Jansen",
    "Silva",
)
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]


def birth_dates(rng: random.Random) -> list[tuple[str, str]]:
    y, m, d = rng.randint(1940, 2008), rng.randint(1, 12), rng.randint(1, 28)
    long = f"{MONTHS[m - 1]} {d}, {y}"
    made = [
        ("I was born on {}.", long),
        ("Date of birth: {}", f"{y}-{m:02d}-{d:02d}"),
        ("DOB {} per the form", f"{m:02d}/{d:02d}/{y}"),
        ("Geburtsdatum: {}", f"{d:02d}.{m:02d}.{y}"),
        ("Je suis née le {} à Lyon", f"{d:02d}/{m:02d}/{y}"),
        ("Fecha de nacimiento: {}", f"{d}/{m}/{y}"),
        ("UPDATE p SET birth_date = '{}' WHERE id = 4;", f"{y}-{m:02d}-{d:02d}"),
        ("My birthday is {}, so I can vote", f"{d} {MONTHS[m - 1]} {y}"),
        ("Patient, born {}, was seen today.", f"{d}th of {MONTHS[m - 1]} {y}"),
        ("生年月日: {}", f"{y}年{m}月{d}日"),
    ]
    return made


def streets(rng: random.Random) -> list[tuple[str, str]]:
    n = rng.randint(1, 4999)
    return [
        ("Please ship it to {} as soon as you can.", f"{n} Maple Street, Springfield, IL 62704"),
        ("I moved to {} last week.", f"{n} North Oak Avenue"),
        ("Deliver to {}, thanks.", f"{n} Park Rd, Apt 4B"),
        ("Meine Adresse ist {}.", f"Lindenstraße {n % 300 + 1}, 10969 Berlin"),
        ("Ich wohne in der {} im Hinterhaus.", f"Goethestr. {n % 90 + 1}"),
        ("J'habite au {} depuis mai.", f"{n % 200 + 1} rue de la République, 69002 Lyon"),
        ("Vivo en {} con mi familia.", f"Calle de Alcalá {n % 400 + 1}, 28014 Madrid"),
        ("Abito in {} a Roma.", f"Via Garibaldi {n % 100 + 1}"),
        ("The parcel goes to {} please.", f"{n % 90 + 1} Baker Street, London NW1 6XE"),
        ("Ik woon op {} in Utrecht.", f"Prinsengracht {n % 900 + 1}"),
    ]


def persons(rng: random.Random) -> list[tuple[str, str]]:
    first, last = rng.choice(GIVEN), rng.choice(FAMILY)
    full = f"{first} {last}"
    return [
        ("Hello, my name is {} and I have a question.", full),
        ("Hi, I'm {} from Leeds.", full),
        ("Dear Mr. {}, thank you for your letter.", last),
        ("Sehr geehrte Frau {}, anbei die Unterlagen.", last),
        ("Bonjour, je m'appelle {} et je voudrais un devis.", full),
        ("Me llamo {} y quiero cambiar mi contrato.", full),
        ("Mi chiamo {} e vorrei un rimborso.", full),
        ("Please call back.\n\nKind regards,\n{}", full),
        ("Mit freundlichen Grüßen\n{}", full),
        ("The appointment of Dr. {} was moved to Friday.", full),
        ("Customer: {}\nOrder: 5512", full),
        ('{{"first_name": "{}", "plan": "basic"}}', first),
        ("Could you ask for {} at the desk?", full),
        ("Signed by {} on Monday", full),
    ]


# --- secrets ------------------------------------------------------------------------------------------


def secrets(rng: random.Random) -> list[tuple[str, str]]:
    """(format, token): each stands in any text without a word that tells what it is."""
    t = lambda k, letters=ALNUM: token(rng, letters, k)  # noqa: E731
    b64 = lambda text: "eyJ" + t(len(text), URLSAFE.replace("-", ""))  # noqa: E731
    body = "\n".join(t(64, ALNUM + "+/") for _ in range(4))
    return [
        ("aws", "AKIA" + t(16, UPPER + DIGITS)),
        ("aws", "ASIA" + t(16, UPPER + DIGITS)),
        ("github", "ghp_" + t(36)),
        ("github", "gho_" + t(36)),
        ("github", "ghs_" + t(36)),
        ("github", f"github_pat_{t(22)}_{t(59)}"),
        ("gitlab", "glpat-" + t(20, ALNUM + "-")),
        ("slack", f"xoxb-{t(12, DIGITS + 'ab')}-{t(12, DIGITS + 'cd')}-{t(24)}"),
        ("slack", f"xoxp-{draw(rng, DIGITS, 11)}-{draw(rng, DIGITS, 11)}-{t(32, HEX)}"),
        ("slack", f"T{t(8, UPPER + DIGITS)}/B{t(8, UPPER + DIGITS)}/{t(24)}"),
        ("stripe", "sk_live_" + t(24)),
        ("stripe", "rk_test_" + t(99)),
        ("stripe", "whsec_" + t(32)),
        ("openai", f"sk-{t(20)}T3BlbkFJ{t(20)}"),
        ("openai", "sk-proj-" + t(64, URLSAFE)),
        ("anthropic", f"sk-ant-api03-{t(93, URLSAFE)}AA"),
        ("google", "AIza" + t(35, URLSAFE)),
        ("google", "GOCSPX-" + t(28, URLSAFE)),
        ("google", "ya29." + t(60, URLSAFE)),
        ("huggingface", "hf_" + t(34)),
        ("npm", "npm_" + t(36)),
        ("pypi", "pypi-AgEIcHlwaS5vcmc" + t(80, URLSAFE)),
        ("sendgrid", f"SG.{t(22, URLSAFE)}.{t(43, URLSAFE)}"),
        ("mailgun", "key-" + t(32, HEX)),
        ("twilio", "SK" + t(32, HEX)),
        ("telegram", f"{draw(rng, '123456789', 10)}:AA{t(33, URLSAFE)}"),
        ("discord", f"M{t(23)}.{t(6)}.{t(38)}"),
        ("digitalocean", "dop_v1_" + t(64, HEX)),
        ("databricks", "dapi" + t(32, HEX)),
        ("vault", "hvs." + t(24)),
        ("shopify", "shpat_" + t(32, HEX)),
        ("square", "sq0atp-" + t(22)),
        ("jwt", f"{b64('x' * 33)}.{b64('x' * 70)}.{t(43, URLSAFE)}"),
        ("private key", f"-----BEGIN RSA PRIVATE KEY-----\n{body}\n-----END RSA PRIVATE KEY-----"),
        ("private key", f"-----BEGIN OPENSSH PRIVATE KEY-----\n{body}\n-----END OPENSSH PRIVATE KEY-----"),
        ("azure", f"{draw(rng, ALNUM, 3)}8Q~{t(34)}"),
        ("grafana", "glsa_" + t(32) + "_" + t(8, HEX)),
        ("new relic", "NRAK-" + t(27, UPPER + DIGITS)),
        ("linear", "lin_api_" + t(40)),
        ("postman", f"PMAK-{t(24, HEX)}-{t(34, HEX)}"),
    ]  # fmt: skip


def assigned(rng: random.Random) -> list[tuple[str, str, str]]:
    """(what, text with {} in it, secret): a word beside it tells what it is."""
    password = rng.choice(
        ("Tr0ub4dor&3", "hunter2!", "S0mmer2024!", "p@ssw0rd99", "Qx7#mL2$vN")
    ) + draw(rng, DIGITS, 2)
    key = token(rng, ALNUM, 32)
    hexa = token(rng, HEX, 40)
    return [
        ("assigned", 'api_key = "{}"', key),
        ("assigned", "API_KEY={}\nDEBUG=1", key),
        ("assigned", "const apiKey = '{}';", key),
        ("assigned", '{{"access_token": "{}", "expires_in": 3600}}', key),
        ("assigned", "client_secret: {}", hexa),
        ("assigned", "export SECRET_KEY='{}'", hexa),
        ("assigned", "aws_secret_access_key = {}", token(rng, ALNUM + "/+", 40)),
        ("assigned", "curl -H 'Authorization: Bearer {}' localhost", token(rng, URLSAFE, 40)),
        ("assigned", "x-api-key: {}", key),
        ("password", 'password = "{}"', password),
        ("password", "my password is {} but it does not work", password),
        ("password", "DB_PASSWORD={}", password),
        ("password", "mein Passwort lautet: {}", password),
        ("password", "<password>{}</password>", password),
        ("password", "CREATE USER app IDENTIFIED BY '{}';", password),
        ("password", "mysql --user=root --password={} shop", password),
        ("url", "postgres://app:{}@db.internal:5432/shop", token(rng, ALNUM, 14)),
        ("url", "mongodb+srv://admin:{}@cluster0.example.net/test", token(rng, ALNUM, 12)),
        ("url", "redis://:{}@cache:6379/0", token(rng, ALNUM, 20)),
        ("url", "git clone https://bot:{}@git.example.org/a.git", token(rng, ALNUM, 20)),
        ("url", "Server=sql;Database=shop;User Id=sa;Password={};Encrypt=true", password),
        (
            "azure",
            "AccountName=shop;AccountKey={};EndpointSuffix=x",
            token(rng, ALNUM + "+/", 86) + "==",
        ),
    ]


# --- texts --------------------------------------------------------------------------------------------

FREE = (
    "{}",
    "Hello, please update my details: {} (that is the new one).",
    "Hi there! I sent it twice already, see {}, and nobody answers. Why?",
    "Bitte ändern Sie meine Angaben auf {}. Vielen Dank!",
    "Voici mes coordonnées : {}. Merci de confirmer.",
    "Mis datos son {}, gracias por su ayuda.",
    "2026-03-01 12:00:07 INFO user=17 value={} status=ok",
    "SELECT * FROM customers WHERE detail = '{}' AND active = 1;",
    "INSERT INTO people (id, detail) VALUES (12, '{}');",
    'row = {{"id": 12, "detail": "{}"}}',
    "# note\ndetail = '{}'\nprint(detail)",
    "| id | detail |\n|---|---|\n| 12 | {} |",
    "id,detail,active\n12,{},true",
    "连络方式: {} 谢谢 🙂",
    "- name: x\n  detail: {}\n  n: 3",
)  # fmt: skip
PHONE_TEXTS = (
    "You can call me at {} after six.",
    "My phone number is {}.",
    "Meine Telefonnummer: {}",
    "Mon téléphone : {}",
    "UPDATE users SET phone = '{}' WHERE id = 3;",
    '{{"phone": "{}"}}',
)  # fmt: skip
CUED = (
    "My {cue} is {{}}.",
    "{cue}: {{}}",
    "UPDATE p SET note = '{cue} {{}}';",
    "Please find my {cue} here: {{}}",
)


def _planted(template: str, value: str, kind: str, detail: str = "") -> Planted:
    return Planted(
        template.replace("{{", "{").replace("}}", "}").replace("{}", value, 1), value, kind, detail
    )


def personal_data(seed: int = 1, rounds: int = 6) -> list[Planted]:
    """At least 100 texts a round, one finding in each."""
    rng = random.Random(seed)
    made: list[Planted] = []

    def free(value: str, kind: str, detail: str = "") -> None:
        made.append(_planted(rng.choice(FREE), value, kind, detail))

    for _ in range(rounds):
        for value in emails(rng):
            free(value, "email")
        for value, cued in phones(rng):
            made.append(_planted(rng.choice(PHONE_TEXTS if cued else FREE), value, "phone"))
        for value in cards(rng):
            free(value, "card")
        for value in ibans(rng):
            free(value, "iban")
        for kind, value in addresses_of_hosts(rng):
            free(value, kind)
        for detail, value, cue in national_ids(rng):
            template = rng.choice(CUED).format(cue=cue) if cue else rng.choice(FREE)
            made.append(_planted(template, value, "national_id", detail))
        for kind, texts in (("birth_date", birth_dates), ("address", streets), ("name", persons)):
            made += [_planted(template, value, kind) for template, value in texts(rng)]
    return made


def secret_texts(seed: int = 2, rounds: int = 5) -> list[Planted]:
    """At least 60 texts a round, one secret in each."""
    rng = random.Random(seed)
    made: list[Planted] = []
    for _ in range(rounds):
        for detail, value in secrets(rng):
            if value.startswith("T") and value.count("/") == 2:
                made.append(
                    _planted("url: hooks.slack.com/services/{} (ops)", value, "secret", detail)
                )
            else:
                made.append(_planted(rng.choice(FREE), value, "secret", detail))
        for detail, template, value in assigned(rng):
            made.append(_planted(template, value, "secret", detail))
    return made


def as_row(planted: Planted, seed: int = 0) -> dict[str, object]:
    """The text in a row: in a question, an answer, or the arguments of a tool call."""
    turns: list[dict[str, object]] = [
        {"role": "user", "content": "Help me."},
        {"role": "assistant", "content": "Of course."},
    ]
    place = random.Random(f"{seed}/{planted.text}").randrange(3)
    if place == 2:
        call = {"name": "save", "arguments": json.dumps({"note": planted.text, "n": 1})}
        turns[1] = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": call}],
        }
    else:
        turns[place]["content"] = planted.text
    return {"messages": turns, "meta": {"id": 7}}
