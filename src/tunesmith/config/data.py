"""Where the examples come from and how they are split."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, Strict, model_validator

from tunesmith.config.base import Settings
from tunesmith.config.card import CardConfig
from tunesmith.config.privacy import PiiConfig, SecretsConfig

__all__ = [
    "CheckConfig",
    "CleanConfig",
    "DataConfig",
    "FieldMapping",
    "FilesSource",
    "MixSource",
    "RandomSplit",
    "SampleSource",
    "SplitConfig",
    "TimeSplit",
]

JsonScalar = bool | int | float | str | None


def _one_or_many(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Paths = Annotated[
    tuple[str, ...],
    Strict(False),
    BeforeValidator(_one_or_many, json_schema_input_type=str | tuple[str, ...]),
]
"""Files: a list of them, or a single one."""


class SampleSource(Settings):
    """A dataset that ships with tunesmith."""

    kind: Literal["sample"] = "sample"
    name: Literal["text-to-sql", "support", "code-docs", "preferences", "arithmetic"] = (
        "text-to-sql"
    )
    """`text-to-sql`: questions about several small databases, each with a query that runs; `support`: customers of an
    invented shop; `code-docs`: Python functions and their docstrings; `preferences`: pairs of answers, for preference
    tuning; `arithmetic`: problems with answers that can be checked. `tunesmith data sample NAME` describes one."""


class FilesSource(Settings):
    """The user's own files: JSONL, JSON, CSV, TSV, Parquet, text or Markdown, also packed by gzip or zstd.

    A folder stands for the files below it that hold rows, a pattern such as `data/*.jsonl` for those that match, and
    `hf://datasets/OWNER/NAME[@REVISION]` for a dataset of the Hugging Face hub.
    """

    kind: Literal["files"]
    train: Paths = Field(min_length=1, json_schema_extra={"path": "always"})
    """Files with the training rows; relative to the recipe that names them."""
    validation: Paths = Field((), json_schema_extra={"path": "always"})
    """Files with validation rows. Without them, `validation_ratio` of the training rows is held out."""
    test: Paths = Field((), json_schema_extra={"path": "always"})
    """Files with test rows. Without them, `test_ratio` of the training rows is held out."""


class MixSource(Settings):
    """Several sets of files, each with its weight among the training rows."""

    kind: Literal["mix"]
    parts: dict[str, Paths] = Field(min_length=2, json_schema_extra={"path": "always"})
    """Name -> files with its rows, such as `{sql: sql.jsonl, chat: [a.jsonl, b.jsonl]}`."""
    weights: dict[str, Annotated[float, Field(gt=0, le=1_000_000)]] = Field(default_factory=dict)
    """Name -> its share of the training rows, as any positive numbers: `{sql: 3, chat: 1}`. 1 where not set."""
    train_rows: int | None = Field(None, ge=1)
    """Training rows of the mix. When not set as many as the weights allow without repeating a row."""
    max_repeats: int = Field(4, ge=1, le=100)
    """Refuse a mix that needs a row more often; up to four times a row teaches nearly as much as a new one
    (Muennighoff et al. 2023, arXiv 2305.16264)."""
    source_field: str = Field("source", min_length=1)
    """Field of each row that gets the name of its part."""
    validation: Paths = Field((), json_schema_extra={"path": "always"})
    """Files with validation rows. Without them, `validation_ratio` of all parts' rows is held out before the mix."""
    test: Paths = Field((), json_schema_extra={"path": "always"})
    """Files with test rows. Without them, `test_ratio` of all parts' rows is held out before the mix."""


class RandomSplit(Settings):
    """Rows are held out at random, by the recipe's seed; rows with equal prompts stay on one side."""

    kind: Literal["random"] = "random"
    stratify: str | None = Field(None, min_length=1)
    """Field such as `label` or `task` whose values get the same shares in every split; `answer` is the answer
    itself."""
    group: str | None = Field(None, min_length=1)
    """Field such as `user` or `document`: rows with the same value stay on one side."""
    by_template: bool = False
    """Keep rows on one side whose prompts are equal once numbers, quoted values and names are taken out. The test then
    asks for questions of a new form."""
    near_duplicates: bool = True
    """Keep rows with nearly the same prompt on one side, as `near_similarity` has it."""


class TimeSplit(Settings):
    """The latest rows are held out: the test's come after the validation rows, and those after the training rows."""

    kind: Literal["time"]
    field: str = Field(min_length=1)
    """Field with each row's time: ISO 8601 text such as `2026-03-01T12:00:00Z`, or seconds since 1970."""


SplitConfig = Annotated[RandomSplit | TimeSplit, Field(discriminator="kind")]
"""How rows are held out of training when no file names them."""


SchemaName = Literal[
    "chat",
    "sharegpt",
    "chatml",
    "instruction",
    "prompt-completion",
    "prompt-completion-turns",
    "preference",
    "preference-text",
    "preference-implicit",
    "preference-hh",
    "feedback",
    "feedback-text",
    "problem",
    "problem-text",
    "text",
]
"""Forms of rows; `tunesmith data convert --help` says what each holds."""


FormName = Literal["auto", "jsonl", "json", "csv", "tsv", "parquet", "txt", "markdown"]


class CleanConfig(Settings):
    """What is dropped from the rows and changed in them, each time with a line in a side file. Nothing unless asked."""

    unreadable: Literal["refuse", "drop"] = "refuse"
    """What to do with rows that cannot be read (no JSON, a field missing or empty, another schema): refuse the files
    and name all of them, or leave them out. A file of which more than half are so is refused all the same."""
    exact: Literal["keep", "drop"] = "keep"
    """`drop` leaves out rows whose conversation is that of an earlier row, character by character."""
    near: Literal["keep", "drop"] = "keep"
    """`drop` leaves out rows that say what an earlier row says but for case, typing errors, word order, small words, a
    synonym or an added sentence, and whose answers agree as well; in texts of up to 100 words numbers, quoted values
    and names never differ."""
    near_threshold: float = Field(0.7, ge=0.5, le=1)
    """Jaccard similarity of words and word pairs from which texts of more than twelve telling words are near. Lower
    drops more."""
    semantic: Literal["keep", "drop"] = "keep"
    """`drop` leaves out rows whose question means what an earlier row's means, by the model's token embeddings, and
    whose answer is equal. It errs more often than `near`; look at the side file."""
    semantic_threshold: float = Field(0.95, gt=0, le=1)
    """Cosine similarity from which two questions mean the same. Lower drops more, and more that is not the same."""
    semantic_model: str = Field("embedded", min_length=1)
    """Model that `semantic` compares by: `embedded`, a folder, a .gguf file or a Hub id."""
    normalize: bool = False
    """Mend texts: Unicode NFC, mojibake, line ends, control and invisible characters, white space at line ends."""
    html: Literal["keep", "strip"] = "keep"
    """`strip` takes HTML tags and entities out of texts that are no code."""
    min_question_characters: int = Field(0, ge=0)
    """Drop rows whose question is shorter."""
    max_question_characters: int | None = Field(None, ge=1)
    """Drop rows whose question is longer."""
    min_answer_characters: int = Field(0, ge=0)
    """Drop rows whose answer is shorter."""
    max_answer_characters: int | None = Field(None, ge=1)
    """Drop rows whose answer is longer."""
    empty: Literal["keep", "drop"] = "keep"
    """`drop` leaves out rows whose answer is empty, or says only "N/A", "null" or the like."""
    refusals: Literal["keep", "drop"] = "keep"
    """`drop` leaves out rows whose answer refuses ("I'm sorry, but I cannot ..."), which would teach the model to."""
    languages: Annotated[tuple[str, ...], Strict(False)] = ()
    """Drop rows whose text is told to be in another language than these (codes such as `en`); short texts stay."""
    drop_where: dict[str, JsonScalar] = Field(default_factory=dict)
    """Drop rows whose field has this value, such as `{source: forum}`; with several fields, any of them."""
    against: Paths = Field((), json_schema_extra={"path": "always"})
    """Benchmark or test files: drop rows that hold a passage or a reworded question of theirs."""
    against_words: int = Field(13, ge=5, le=50)
    """Length of the passages that `against` looks for, in words; 13 as in Brown et al. 2020 (arXiv 2005.14165)."""
    pii: PiiConfig = PiiConfig()
    """What is done about personal data."""
    secrets: SecretsConfig = SecretsConfig()
    """What is done about keys, tokens and passwords."""


class FieldMapping(Settings):
    """Names of fields in files that call them otherwise: what a field is for -> its name there."""

    messages: str | None = None
    """Field that holds the conversation, as a list of turns."""
    prompt: str | None = None
    """Field that holds the user's message, or the turns before the answer."""
    completion: str | None = None
    """Field that holds the answer to learn."""
    answer: str | None = None
    """Field that holds an answer to compare with, which is not learned."""
    chosen: str | None = None
    """Field that holds the better of two answers."""
    rejected: str | None = None
    """Field that holds the worse of two answers."""
    label: str | None = None
    """Field that says whether an answer is good: true or false."""
    instruction: str | None = None
    """Field that holds what is to be done."""
    input: str | None = None
    """Field that holds what it is to be done with; it follows the instruction after an empty line."""
    output: str | None = None
    """Field that holds what was done: the answer to learn."""
    system: str | None = None
    """Field that holds a row's own system message, in rows of instructions and of ShareGPT."""
    history: str | None = None
    """Field that holds earlier questions with their answers, in rows of instructions."""
    tools: str | None = None
    """Field that describes the tools that the assistant may call."""
    text: str | None = None
    """Field that holds plain text, or a conversation in ChatML."""

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        """An empty mapping would say nothing."""
        if not self.model_fields_set:
            raise ValueError("name at least one field, such as `prompt` and `completion`")
        return self


class CheckConfig(Settings):
    """What `tunesmith data check` and each build look for, beside what they always do."""

    domain: Literal["auto", "none", "sql", "python", "json"] = "auto"
    """What the answers are. `auto`: told for each task from the first rows; `none`: no domain is checked."""
    sql_dialect: str = Field("auto", min_length=1)
    """SQL's dialect, by sqlglot's name such as `postgres`. `auto`: SQLite first, then six others. Rows with a database
    are always run on SQLite."""
    json_schema: str | None = Field(None, min_length=1, json_schema_extra={"path": "always"})
    """File with the JSON schema that JSON answers must keep to. Without it they need only parse."""
    allow: Annotated[tuple[str, ...], Strict(False)] = ()
    """Names of checks that report nothing, such as `[refusal, html]`; they then cost no points either."""
    languages: Annotated[tuple[str, ...], Strict(False)] = ()
    """Codes of the languages that rows may have, such as `[en, de]`; the main language of the rows when empty."""
    token_rows: int = Field(20_000, ge=100)
    """Rows that are measured in tokens; of more rows about so many are drawn, and every row that could be too long is
    measured as well: a build when the recipe names `model.base`, `tunesmith data check` also when it does not."""
    min_rows: int = Field(1_000, ge=1)
    """Rows that a task of generation wants; fewer make the dataset yellow, fewer than 100 red."""
    min_class_rows: int = Field(100, ge=1)
    """Rows that each class of a classification wants; fewer make the dataset yellow."""


class DataConfig(Settings):
    """Raw files to a sealed dataset."""

    source: Annotated[SampleSource | FilesSource | MixSource, Field(discriminator="kind")] = (
        SampleSource()
    )
    """The sample dataset, files of your own, or a weighted mix of several."""
    form: FormName = "auto"
    """What the files are: `jsonl`, `json`, `csv`, `tsv`, `parquet`, `txt` or `markdown`; `auto` tells it from the
    content (`tunesmith data inspect FILE` says what it finds)."""
    rows: SchemaName | None = None
    """What the rows of the files are, such as `chat` or `preference`; detected from the content when not set."""
    fields: FieldMapping | None = None
    """Set it when the rows' fields have other names; detected from the content otherwise."""
    system: str | None = Field(None, min_length=1)
    """System message for rows that have none. Every row then pays for its tokens."""
    require: dict[str, JsonScalar] = Field(default_factory=dict)
    """Keep only rows whose field has this value, such as `{executes: true}`; the others are counted."""
    databases: dict[str, str] = Field(default_factory=dict, json_schema_extra={"path": "always"})
    """Name -> SQLite file, for evaluation by execution. A row picks one by its field `database`;
    with a single database rows need no such field."""
    validation_ratio: float = Field(0.1, gt=0, lt=0.5)
    """Share of the training rows held out for validation when no validation file is given."""
    test_ratio: float = Field(0.1, gt=0, lt=0.5)
    """Share of the training rows held out for the test when no test file is given."""
    validation_rows: int | None = Field(None, ge=1)
    """Rows to hold out for validation, in place of `validation_ratio`."""
    test_rows: int | None = Field(None, ge=1)
    """Rows to hold out for the test, in place of `test_ratio`."""
    split: SplitConfig = RandomSplit()
    """How rows are held out when no file names them."""
    on_overlap: Literal["refuse", "drop_from_train"] = "refuse"
    """What to do when a prompt of the validation or test rows also occurs in the training rows, or one of the
    test rows in the validation rows, which `drop_from_train` drops as well."""
    on_near_overlap: Literal["report", "refuse", "drop_from_train"] = "report"
    """The same for prompts that are nearly equal. `report` names them in the sealed `findings.jsonl` and counts
    them."""
    overlap_words: int | None = Field(None, ge=8, le=50)
    """Also look for passages of so many words, such as 13, of the test and validation rows in the rows before them;
    what is done about them says `on_near_overlap`. It reads every row once more, so it is off unless set."""
    near_similarity: float = Field(0.7, ge=0.5, le=1)
    """Jaccard similarity of words and word pairs from which longer prompts are nearly equal. Lower finds more
    rewording, and more that only look alike."""
    clean: CleanConfig = CleanConfig()
    """What is dropped and changed before the rows are split."""
    check: CheckConfig = CheckConfig()
    """What the checks look for."""
    card: CardConfig = CardConfig()
    """What the sealed dataset's card says about it."""
    max_train_rows: int | None = Field(None, ge=1)
    """Keep this many training rows, drawn with the recipe's seed; all when not set."""
    max_test_rows: int | None = Field(None, ge=1)
    """Keep this many test rows, drawn with the recipe's seed; all when not set."""
