import re
from html.parser import HTMLParser

import pytest

from keras_mas.metrics import average_accuracy, backward_transfer, forgetting
from keras_mas.training import pictures
from keras_mas.training.html_report import write_html
from keras_mas.training.summary import groups

EVIL = '<script>alert("x")</script>'


def result(method="mas", seed=0, tasks=("ants", "bees", "cats"), strength=1.0, **fields):
    count = len(tasks)
    R = [
        [0.9 - 0.1 * min(4, max(0, i - j)) - 0.01 * seed for j in range(count)]
        for i in range(count)
    ]
    return {
        "stream": "insects",
        "scenario": "task",
        "tasks": list(tasks),
        "method": method,
        "strength": None if method == "finetune" else strength,
        "penalty": "in_loss",
        "seed": seed,
        "evaluated_on": "test",
        "accuracy_matrix": R,
        "average_accuracy": average_accuracy(R),
        "forgetting": forgetting(R),
        "backward_transfer": backward_transfer(R),
        "forward_transfer": 0.0,
        "recipe": {"backbone": "mlp-8", "epochs": 20, "first_epochs": None},
        "examples": {task: {"train": 10, "validation": 2, "test": 5} for task in tasks},
        "seconds": {"training": 1.5, "importance": 0.5, "evaluation": 0.1, "saving": 0.25},
        "memory": {"kept_by_method": 2_000_000, "process": 500_000_000},
        "versions": {"keras": "3.15.1"},
        **fields,
    }


class Page(HTMLParser):
    """What a reader of the page gets, and what is missing of it."""

    VOID = {"meta", "link", "br", "hr", "img", "input"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words, self.problems = [], [], [], []
        self.feed(text)
        self.problems += [f"<{tag}> is not closed" for tag in self.open]

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append((tag, values))
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            refers = name in ("src", "href", "xlink:href", "action", "data")
            if name.startswith("on") or refers and not value.startswith(("#", "data:image/png")):
                self.problems.append(f"{tag} {name}={value[:60]}")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes nothing")

    def handle_data(self, data):
        self.words.append(data)

    def of(self, tag):
        return [values for name, values in self.tags if name == tag]


def page_of(path, results, **options):
    write_html(path, results, **options)
    text = path.read_text()
    return Page(text), text


@pytest.fixture
def both():
    return [result(m, s) for m in ("mas", "finetune") for s in (0, 1)]


def test_the_page_needs_no_network_and_no_script(both, tmp_path):
    page, text = page_of(tmp_path / "new" / "report.html", both, commands=["keras-mas compare x"])
    assert page.problems == []
    assert page.of("script") == page.of("link") == page.of("iframe") == []
    assert "@import" not in text and "url(http" not in text
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]


def test_pictures_have_words_and_tables_have_headings(both, tmp_path):
    page, _ = page_of(tmp_path / "report.html", both)
    pictures = [values for values in page.of("div") if values.get("role") == "img"]
    # The mean and three tasks, two matrices, stability, seconds and megabytes.
    assert len(pictures) == 4 + 2 + 1 + 2
    assert all(len(values["aria-label"]) > 40 for values in pictures)
    words = " ".join(values["aria-label"] for values in pictures)
    assert "accuracy on task ants. After the last task: mas λ=1 0.695, finetune 0.695." in words
    tables = page.of("table")
    assert len(page.of("thead")) == len(tables) == 4
    about = {values["id"] for values in page.of("p") if "id" in values}
    assert about == {values["aria-describedby"] for values in tables} and len(about) == 4
    assert all("scope" in values for values in page.of("th"))
    assert page.of("html") == [{"lang": "en"}]


def test_what_is_kept_on_disk_is_not_called_memory(both, tmp_path):
    page, text = page_of(tmp_path / "report.html", both)
    assert "<figcaption>Megabytes on disk between tasks</figcaption>" in text
    pictures = [values["aria-label"] for values in page.of("div") if values.get("role") == "img"]
    assert any("keeps on disk between tasks: mas λ=1 2.0" in words for words in pictures)
    assert "nothing of the memory that the method needs while a task is learned" in text


def test_a_long_word_outside_of_tables_is_broken(both, tmp_path):
    command = f"keras-mas compare insects --methods {','.join(['imm_mean'] * 30)}"
    page, text = page_of(tmp_path / "report.html", both, remarks={"mas": [command]})
    assert command in " ".join(page.words)
    assert "\np, li, figcaption { overflow-wrap: anywhere; }\n" in text


def test_the_numbers_are_there(both, tmp_path):
    page, text = page_of(
        tmp_path / "report.html",
        both,
        commands=["keras-mas compare insects --seeds 0,1", "keras-mas compare insects --seeds 0,1"],
        failed=[("ewc λ=1 seed 0", "It diverged.")],
    )
    words = " ".join(" ".join(page.words).split())
    assert "0.7950 ± 0.0071" in words  # (0.7 + 0.8 + 0.9) / 3 and 0.01 less: mean, 0.01 / √2
    assert "+0.0000 ± 0.0000" in words  # the difference
    assert "ewc λ=1 seed 0: It diverged." in words
    assert words.count("keras-mas compare insects --seeds 0,1") == 1
    assert "mlp-8" in words and "3.15.1" in words


def test_names_are_escaped(tmp_path):
    evil = result(f"$x_1$ {EVIL}", tasks=(EVIL, "&quot;", "a]]>b"), stream=EVIL)
    evil["recipe"] = {EVIL: EVIL}
    page, text = page_of(
        tmp_path / "report.html", [evil], commands=[EVIL], failed=[(EVIL, f"{EVIL} -->")]
    )
    assert page.problems == []
    assert page.of("script") == []
    assert EVIL in "".join(page.words)
    # Beside the bars it takes two lines, and is no formula.
    assert page.words.count('$x_1$ <script>alert("x")') == 2
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize("count", [1, 2, 15, 16])
def test_any_number_of_tasks(tmp_path, count):
    tasks = [f"task-{number}" for number in range(count)]
    page, _ = page_of(tmp_path / "report.html", [result(tasks=tasks)])
    assert page.problems == []
    captions = [word for word in page.words if word.startswith("Task ")]
    assert len(captions) == (count if count <= 15 else 0)


def test_what_is_drawn_takes_its_colours_from_the_page(both, tmp_path):
    _, text = page_of(tmp_path / "report.html", both)
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert "var(--series-0)" in drawn and "var(--series-1)" in drawn and "currentColor" in drawn
    assert not re.search(r"#0[0-3]0[0-9a-f]0[0-9a-f]\b", drawn)  # none of those that stand for them
    for name in re.findall(r"var\((--[a-z0-9-]+)\)", text):
        assert text.count(f"{name}:") >= 3, name  # light, dark and printed


def test_many_methods_differ_in_more_than_their_colour(tmp_path):
    many = [result(f"method-{number}") for number in range(9)]
    page, text = page_of(tmp_path / "report.html", many)
    legend = text[text.index('class="legend"') :].split("</ul>")[0]
    swatches = re.findall(r"<svg.*?</svg>", legend, re.DOTALL)
    assert len(swatches) == len(set(swatches)) == 9
    assert "var(--series-0)" in swatches[0] and "var(--series-0)" in swatches[7]
    assert "dasharray" in swatches[7] and "dasharray" not in swatches[0]


def test_settings_that_differ_are_told_apart(tmp_path):
    other = result("finetune")
    other["recipe"] = {**other["recipe"], "epochs": 5}
    page, _ = page_of(tmp_path / "report.html", [result(), other])
    words = " ".join(" ".join(page.words).split())
    assert re.search(r"epochs mas λ=1\s+epochs=20: 20 finetune\s+epochs=5: 5", words)
    assert "backbone mlp-8" in words


def test_the_same_results_are_the_same_page(both, tmp_path):
    _, first = page_of(tmp_path / "a.html", both)
    _, again = page_of(tmp_path / "b.html", both)
    assert first == again


def test_the_reference_can_be_another_group(both, tmp_path):
    page, _ = page_of(tmp_path / "report.html", both, reference=groups(both)[1])
    assert any("average accuracy from finetune" in word for word in page.words)
    assert sum("±" in word and word[0] in "+-" for word in page.words) == 1 + 2


def evaluations(lowest):
    rows = [(2, 5, [lowest, 0.4]), (2, 10, [0.8, 0.9]), (3, 5, [0.7, lowest, 0.3])]
    keys = ("task", "step", "steps", "accuracies")
    return [dict(zip(keys, (task, step, 10, row), strict=True)) for task, step, row in rows]


def test_the_stability_gap_is_drawn_if_every_run_has_measured_it(tmp_path):
    measured = {"min_accuracy": 0.25, "worst_case_accuracy": 0.5, "evaluations": evaluations(0.25)}
    page, _ = page_of(
        tmp_path / "report.html", [result(**measured), result("finetune", **measured)]
    )
    words = " ".join(page.words)
    assert "The stability gap" in words and "0.2500" in words and "WC-ACC of all" in words
    labels = [v["aria-label"] for v in page.of("div") if "since it was" in v.get("aria-label", "")]
    assert len(labels) == 2
    assert "Lowest: mas λ=1 0.250, finetune 0.250. min-ACC and WC-ACC" in labels[0]
    page, _ = page_of(tmp_path / "report.html", [result(**measured), result("finetune")])
    assert "The stability gap" not in " ".join(page.words)


def test_results_of_earlier_versions_are_drawn(tmp_path):
    old = result()
    for name in ("memory", "versions", "examples", "evaluated_on"):
        del old[name]
    page, _ = page_of(tmp_path / "report.html", [old])
    assert page.problems == []
    assert "Megabytes" not in " ".join(page.words)


def text_of(page):
    return " ".join(" ".join(page.words).split())


def evaluation(task, accuracies):
    return {"task": task, "step": 5, "steps": 10, "accuracies": accuracies}


def test_the_lowest_accuracy_is_sought_at_the_ends_of_tasks_too(tmp_path):
    measured = {"min_accuracy": 0.25, "worst_case_accuracy": 0.5}
    # Of the second task nothing was measured while a later one was learned.
    measured["evaluations"] = [evaluation(2, [0.85, 0.4])]
    page, _ = page_of(tmp_path / "report.html", [result(**measured)])
    labels = [v["aria-label"] for v in page.of("div") if "Lowest" in v.get("aria-label", "")]
    # After two more tasks 0.9 − 2 · 0.1, less than the 0.85; after one more 0.9 − 0.1.
    assert "Lowest: mas λ=1 0.700." in labels[0] and "Lowest: mas λ=1 0.800." in labels[1]


def test_the_lowest_accuracy_is_that_of_all_seeds_since_the_task_was_learned(tmp_path):
    # When it was learned the first task was known less well than ever after.
    rows = [[0.3, 0.1], [0.6, 0.9]], [[0.3, 0.1], [0.5, 0.9]]
    measured = {"min_accuracy": 0.5, "worst_case_accuracy": 0.5}
    measured["evaluations"] = [evaluation(2, [0.55, 0.8])]
    runs = [
        result(seed=s, tasks=("a", "b"), accuracy_matrix=R, **measured) for s, R in enumerate(rows)
    ]
    page, _ = page_of(tmp_path / "report.html", runs)
    (label,) = [v["aria-label"] for v in page.of("div") if "Lowest" in v.get("aria-label", "")]
    assert "Lowest: mas λ=1 0.500." in label


def test_the_gap_is_drawn_between_tasks_too(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        pictures, "_mean_line", lambda panel, x, curves, number: drawn.append((x, curves)) or 0.5
    )
    measured = [evaluation(1, [0.5]), evaluation(2, [0.6, 0.5]), evaluation(3, [0.4, 0.7, 0.5])]
    pictures.task_while_others_are_learned(groups([result(evaluations=measured)]), 0)
    [(x, curves)] = drawn
    assert x == (1.0, 1.5, 2.0, 2.5, 3.0)
    assert curves.round(9).tolist() == [[0.9, 0.6, 0.8, 0.4, 0.7]]


def test_what_evaluations_under_way_say_of_joint_training_and_imm(tmp_path):
    measured = {"min_accuracy": 0.25, "worst_case_accuracy": 0.5, "evaluations": evaluations(0.25)}
    page, _ = page_of(tmp_path / "report.html", [result("joint", **measured)])
    assert "Joint training begins anew with every task" in text_of(page)
    assert "before it merges them" in text_of(page)


@pytest.mark.parametrize(
    ("others", "heading"),
    [
        ([result("finetune")], "mas λ=1, finetune on insects"),
        ([result(f"method-{n}") for n in range(5)], "6 methods on insects"),
        ([result(strength=10.0**n) for n in range(1, 9)], "9 settings of mas on insects"),
        (
            [result(f"method-{n}", strength=s) for n in range(2) for s in (1.0, 2.0, 3.0)],
            "7 settings of 3 methods on insects",
        ),
        ([result(seed=1, stream="bugs")], "mas λ=1 stream=insects, mas λ=1 stream=bugs on"),
    ],
)
def test_the_heading_fits_into_a_line(tmp_path, others, heading):
    page, _ = page_of(tmp_path / "report.html", [result(), *others])
    assert heading in text_of(page)


def test_the_heading_shows_all_that_occurs(tmp_path):
    other = result(stream="bugs", scenario="domain", evaluated_on="validation")
    page, _ = page_of(tmp_path / "report.html", [result(), other])
    assert "on insects and bugs" in text_of(page)
    assert "task- and domain-incremental, measured on test and validation data" in text_of(page)


@pytest.mark.parametrize(
    ("evaluated_on", "heading"),
    [
        (["test"], "held out, then trained on"),
        (["validation"], "to validate"),
        (["test", "validation"], "held out"),
    ],
)
def test_what_became_of_the_examples_held_out(tmp_path, evaluated_on, heading):
    runs = [result(evaluated_on=on) for on in evaluated_on]
    page, _ = page_of(tmp_path / "report.html", runs)
    words = [word for word in page.words if word in ("held out", "to validate") or "then" in word]
    assert words == [heading]


def test_examples_that_one_run_has_not_recorded_are_those_of_the_others(tmp_path):
    one, other = result(), result(seed=1)
    other["examples"] = {"ants": {"train": 20, "validation": 2, "test": 5}}
    page, _ = page_of(tmp_path / "report.html", [one, other])
    assert "10, 20" in page.words and "ants" in page.words and "cats" in page.words


def test_numbers_of_examples_are_those_of_all_runs(tmp_path):
    more = {task: {"train": 77, "validation": 23, "test": 5} for task in ("ants", "bees", "cats")}
    page, _ = page_of(tmp_path / "report.html", [result(), result(seed=1, examples=more)])
    assert page.words.count("10, 77") == page.words.count("2, 23") == 3


def test_a_file_is_shown_by_its_name(tmp_path):
    runs = [
        result(recipe={"backbone": "alexnet", "weights": weights})
        for weights in ("/home/me/private/begin.h5", None)
    ]
    page, text = page_of(tmp_path / "report.html", runs)
    assert "private" not in text
    assert "weights=begin.h5" in text_of(page) and "weights=none" in text_of(page)


def test_names_beside_bars_are_whole(tmp_path):
    runs = [result(recipe={"learning_rate": rate, "epochs": 7}) for rate in (0.001, 0.002)]
    page, text = page_of(tmp_path / "report.html", runs)
    drawn = text[text.index("Seconds a run") :]
    assert "learning_rate=0.001" in drawn and "learning_rate=0.002" in drawn
    assert "…" not in text


def test_seconds_are_explained_where_they_are_shown(both, tmp_path):
    page, _ = page_of(tmp_path / "report.html", both)
    assert text_of(page).count("Runs of one comparison share a process") == 2


def test_a_band_lies_within_the_axis(tmp_path, monkeypatch):
    panels = []
    draw = pictures._mean_line

    def drawn(panel, *rest):
        panels.append(panel)
        return draw(panel, *rest)

    monkeypatch.setattr(pictures, "_mean_line", drawn)
    # The mean 0.6 less the deviation 0.2 · √2 is 0.317; the lowest accuracy is 0.4.
    matrices = [[[0.8, 0.0], [value, 0.8]] for value in (0.4, 0.8)]
    runs = [result(seed=s, accuracy_matrix=R, tasks=("a", "b")) for s, R in enumerate(matrices)]
    pictures.task_over_time(groups(runs), 0)
    assert panels[0].get_ylim()[0] < 0.6 - 0.2 * 2**0.5


def test_what_is_said_of_each_method_is_on_the_page(both, tmp_path):
    page, _ = page_of(tmp_path / "page.html", both, remarks={"mas": ["λ & all will do."]})
    assert "mas: λ & all will do." in page.words
    assert not page.problems
