"""The judge asks what is missing, survives a bad endpoint, reads strictly and never shows its key."""

import asyncio
import logging
import multiprocessing
import re
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import pytest

from steer_pipeline.catalogue import load_personas
from steer_pipeline.catalogue.specs import JudgeSpec
from steer_pipeline.lab.endpoints import AnswerCache, answers, shown_url
from steer_pipeline.lab.endpoints.client import GIVE_UP_AFTER
from steer_pipeline.lab.evaluation import JudgeError, Judgement, JudgeUnavailable, judge_texts
from steer_pipeline.lab.evaluation.judge import cache_key, fill_rubric
from steer_pipeline.lab.evaluation.judgement import read_judgement
from steer_pipeline_tests.lab.evaluation.judge_server import NOW, Request, ScriptedJudge, Step, mlx_server

TRAIT, ROLE, AXIS = (load_personas()[name] for name in ("creative", "sailor", "paranoid"))
SPEC = JudgeSpec(requests_per_second=2000, concurrency=4, timeout_s=5, max_retries=2)
SECRET = "sk-very-secret-4711"
MODEL = Path(__file__).parents[3] / "assets_data" / "newsroom" / "model"


def pairs(n: int) -> list[tuple[str, str]]:
    return [(f"question {i}?", f"answer number {i}.") for i in range(n)]


def number(prompt: str) -> int:
    """Which of `pairs` a prompt holds."""
    return int(re.search(r"answer number (\d+)", prompt)[1])


def statuses(verdicts: list[Judgement]) -> dict[str, int]:
    return dict(Counter(verdict.status for verdict in verdicts))


# ---------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "reply, score",
    [
        ("85", 85),
        ("0", 0),
        ("100", 100),
        (" 7\n", 7),
        ("85.", 85),
        ('"85"', 85),
        ("'85.'", 85),
        ("“85”.", 85),
    ],
)
def test_one_whole_number_of_the_scale_is_a_score(reply, score):
    assert read_judgement(reply, TRAIT.scale) == Judgement(score, "scored", reply)


@pytest.mark.parametrize(
    "reply",
    [
        *(
            "",
            " ",
            "101",
            "-1",
            "+5",
            "085",
            "85.0",
            "8.5",
            "85/100",
            "85%",
            "**85**",
            "Score: 85",
            "85 out of 100",
        ),
        *(
            "85 90",
            "85..",
            "٨٥",
            "1000",
            "I cannot give a REFUSAL here",
            "refusal",
            "There are 3 of them",
            "NaN",
        ),
    ],
)
def test_anything_else_is_invalid_and_has_no_score(reply):
    assert read_judgement(reply, TRAIT.scale) == Judgement(None, "invalid", reply)


@pytest.mark.parametrize("reply", ["REFUSAL", " REFUSAL.\n", '"REFUSAL"'])
def test_a_refusal_is_one_word(reply):
    assert read_judgement(reply, ROLE.scale) == Judgement(None, "refusal", reply)


def test_a_role_has_its_own_scale():
    assert ROLE.scale.top == 3
    assert read_judgement("3", ROLE.scale).score == 3
    assert read_judgement("4", ROLE.scale).status == "invalid"
    assert read_judgement("85", ROLE.scale).status == "invalid"
    with pytest.raises(ValueError, match="persona paranoid: an axis"):
        _ = AXIS.scale


def test_texts_with_braces_fill_the_rubric_as_they_are():
    filled = fill_rubric("Q: {question} A: {answer} {other}", "{answer} {0} %s", "{question} \\1 {x!r}")
    assert filled == "Q: {answer} {0} %s A: {question} \\1 {x!r} {other}"


# ----------------------------------------------------------------------------------------- asking


def test_the_rubric_goes_out_at_temperature_zero_and_the_verdicts_come_back_in_order(tmp_path):
    def script(request: Request) -> Step:
        i = number(request.prompt)
        return Step(str(i), delay=0.05 if i % 3 == 0 else 0.0)  # later ones finish first

    with ScriptedJudge(script) as judge:
        verdicts = judge_texts(TRAIT, pairs(12), SPEC, judge.url, tmp_path)
    assert [verdict.score for verdict in verdicts] == list(range(12))
    assert not any(verdict.cached for verdict in verdicts)
    asked = next(request for request in judge.requests if number(request.prompt) == 7)
    assert asked.body == {
        "messages": [
            {"role": "user", "content": fill_rubric(TRAIT.judge_rubric, "question 7?", "answer number 7.")}
        ],
        "model": SPEC.model,
        "temperature": 0.0,
        "max_tokens": SPEC.max_tokens,
    }


def test_scores_refusals_invalid_and_missing_replies_are_counted_apart(tmp_path):
    def script(request: Request) -> Step:
        return [Step("3"), Step("REFUSAL"), Step("85"), Step(None), Step("no", 500, NOW)][
            number(request.prompt) % 5
        ]

    with ScriptedJudge(script) as judge:
        verdicts = judge_texts(ROLE, pairs(15), SPEC, judge.url, tmp_path)
    assert statuses(verdicts) == {"scored": 3, "refusal": 3, "invalid": 3, "missing": 6}
    assert {verdict.score for verdict in verdicts} == {3, None}
    assert verdicts[4] == Judgement(None, "missing")
    assert len(judge.requests) == 9 + 3 * 3 + 3 * (
        1 + SPEC.max_retries
    )  # empty ones: with more room each time


def test_endpoints_that_refuse_the_limit_or_the_temperature_are_asked_in_their_dialect(tmp_path):
    def script(request: Request) -> Step:
        for field, said in (
            ("max_tokens", "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
            (
                "temperature",
                "'temperature' does not support 0.0 with this model. Only the default is supported.",
            ),
        ):
            if field in request.body:
                return Step(said, 400)
        return Step("85")

    spec = SPEC.model_copy(update={"concurrency": 1})
    with ScriptedJudge(script) as judge:
        assert statuses(judge_texts(TRAIT, pairs(5), spec, judge.url, tmp_path)) == {"scored": 5}
        assert len(judge.requests) == 5 + 2  # learnt once, remembered
        assert judge.requests[-1].body.keys() == {"messages", "model", "max_completion_tokens"}
        assert judge.requests[-1].body["max_completion_tokens"] == SPEC.max_tokens
        judge_texts(TRAIT, pairs(6), spec, judge.url, tmp_path)
        assert len(judge.requests) == 5 + 2 + 1
    with ScriptedJudge(lambda request: Step("this text is forbidden", 400)) as judge:
        assert statuses(judge_texts(TRAIT, pairs(2), SPEC, judge.url, tmp_path / "other")) == {"missing": 2}
    assert len(judge.requests) == 2


def test_a_judge_that_thinks_gets_more_room_and_its_empty_replies_are_not_kept(tmp_path):
    def script(request: Request) -> Step:
        room = request.body["max_tokens"]
        if number(request.prompt) == 3:
            return Step(" \n")  # never says anything
        return Step("<think>well, it is" if room < 100 else "<think>well, it is\n7?</think>\n\n85")

    spec = SPEC.model_copy(update={"concurrency": 1})
    with ScriptedJudge(script) as judge:
        verdicts = judge_texts(TRAIT, pairs(4), spec, judge.url, tmp_path)
    assert [verdict.score for verdict in verdicts] == [85, 85, 85, None]
    assert statuses(verdicts) == {"scored": 3, "missing": 1}
    rooms = [request.body["max_tokens"] // SPEC.max_tokens for request in judge.requests]
    assert rooms == [1, 16, 16, 16, 16, 256]
    with ScriptedJudge(lambda request: Step("40")) as judge:
        assert judge_texts(TRAIT, pairs(4), spec, judge.url, tmp_path)[3] == Judgement(40, "scored", "40")
    assert [number(prompt) for prompt in judge.prompts()] == [3]


def test_empty_replies_that_an_earlier_version_kept_are_asked_again(tmp_path):
    rubric = TRAIT.judge_rubric
    with AnswerCache(tmp_path) as cache:
        cache.put(cache_key(SPEC, rubric, *pairs(1)[0]), SPEC.model, " ")
    with ScriptedJudge(lambda request: Step("85")) as judge:
        assert judge_texts(TRAIT, pairs(1), SPEC, judge.url, tmp_path) == [Judgement(85, "scored", "85")]


def test_a_judge_that_only_ever_thinks_is_named_with_its_cure(tmp_path):
    with (
        ScriptedJudge(lambda request: Step(None)) as judge,
        pytest.raises(JudgeUnavailable, match=r"the reply is empty.*raise judge\.max_tokens"),
    ):
        judge_texts(TRAIT, pairs(40), SPEC, judge.url, tmp_path)


def test_a_second_run_asks_only_what_is_missing_at_whatever_endpoint(tmp_path):
    broken = {3, 8}

    def script(request: Request) -> Step:
        return Step("no", 503, NOW) if number(request.prompt) in broken else Step("nonsense" * 40)

    with ScriptedJudge(script) as first:
        before = judge_texts(TRAIT, pairs(10), SPEC, first.url, tmp_path)
    assert statuses(before) == {"invalid": 8, "missing": 2}
    with ScriptedJudge(lambda request: Step("50")) as second:
        after = judge_texts(TRAIT, pairs(11), SPEC, second.url, tmp_path)
        again = judge_texts(TRAIT, pairs(11), SPEC, second.url, tmp_path)
    assert sorted(map(number, second.prompts())) == [3, 8, 10]
    assert statuses(after) == {"invalid": 8, "scored": 3}
    assert [verdict.cached for verdict in after] == [i not in (3, 8, 10) for i in range(11)]
    assert all(verdict.cached for verdict in again)


def test_the_cache_knows_model_rubric_and_length_and_nothing_of_the_texts(tmp_path):
    spec = SPEC.model_copy(update={"requests_per_second": 7, "concurrency": 1, "timeout_s": 1})
    key = cache_key(SPEC, "r", "q", "a")
    assert key == cache_key(spec, "r", "q", "a")
    others = [
        cache_key(SPEC.model_copy(update={"model": "other"}), "r", "q", "a"),
        cache_key(SPEC.model_copy(update={"max_tokens": 11}), "r", "q", "a"),
        cache_key(SPEC, "r2", "q", "a"),
        cache_key(SPEC, "r", "qa", ""),
        cache_key(SPEC, "r", "q", "a "),
    ]
    assert len({key, *others}) == 6
    with ScriptedJudge() as judge:
        judge_texts(TRAIT, [("where?", "in Northport")], SPEC, judge.url, tmp_path)
    (file,) = tmp_path.iterdir()
    assert b"Northport" not in file.read_bytes()


def test_equal_pairs_are_asked_once_and_odd_texts_can_be_asked(tmp_path):
    odd = [
        ("q", ""),
        ("q", "{answer}"),
        ("q", "\udcff lone"),
        ("q", "🙂\x00<|im_end|>"),
        ("q", "x" * 100_000),
    ]
    with ScriptedJudge() as judge:
        verdicts = judge_texts(TRAIT, odd * 3, SPEC, judge.url, tmp_path)
    assert statuses(verdicts) == {"scored": 15}
    assert len(judge.requests) == 5


def test_nothing_to_judge_asks_nobody(tmp_path):
    assert judge_texts(TRAIT, [], SPEC, "http://127.0.0.1:9/v1", tmp_path) == []


def test_a_running_event_loop_is_no_obstacle(tmp_path):
    async def notebook() -> list[Judgement]:
        return judge_texts(TRAIT, pairs(1), SPEC, judge.url, tmp_path)

    with ScriptedJudge() as judge:
        assert asyncio.run(notebook())[0].score == 85


# ------------------------------------------------------------------------------------- the limits


def test_requests_keep_to_the_rate_and_to_the_number_at_once(tmp_path):
    spec = JudgeSpec(requests_per_second=40, concurrency=6, max_retries=2)
    with ScriptedJudge(lambda request: Step(delay=0.3)) as judge:
        start = time.monotonic()
        judge_texts(TRAIT, pairs(18), spec, judge.url, tmp_path)
        took = time.monotonic() - start
    times = sorted(request.at for request in judge.requests)
    assert times[-1] - times[0] >= 17 / 40 * 0.9
    assert 4 <= judge.most_at_once <= 6  # nobody who waits for a slot keeps the others waiting
    assert took < 18 * 0.3, "they went one by one"


def test_retries_keep_to_the_rate_too(tmp_path):
    spec = JudgeSpec(requests_per_second=20, concurrency=8, max_retries=3)
    with ScriptedJudge(lambda request: Step("busy", 503, NOW) if request.attempt < 2 else Step()) as judge:
        verdicts = judge_texts(TRAIT, pairs(4), spec, judge.url, tmp_path)
    assert statuses(verdicts) == {"scored": 4}
    times = sorted(request.at for request in judge.requests)
    assert len(times) == 12
    assert times[-1] - times[0] >= 11 / 20 * 0.9


# ------------------------------------------------------------------------------------- bad servers


def test_too_many_requests_wait_as_long_as_the_server_says(tmp_path):
    def script(request: Request) -> Step:
        return Step("slow down", 429, {"Retry-After": "1"}) if request.attempt == 0 else Step()

    with ScriptedJudge(script) as judge:
        verdicts = judge_texts(TRAIT, pairs(3), SPEC, judge.url, tmp_path)
    assert statuses(verdicts) == {"scored": 3}
    assert len(judge.requests) == 6
    for prompt in set(judge.prompts()):
        first, second = (request.at for request in judge.requests if request.prompt == prompt)
        assert 0.95 <= second - first < 4, "the own backoff would be half a second"


def test_errors_timeouts_and_broken_connections_are_tried_again(tmp_path):
    faults = [Step("oops", 500, NOW), Step(delay=0.6), Step(drop=True), Step("gateway", 502, NOW)]

    def script(request: Request) -> Step:
        return faults[number(request.prompt) % 4] if request.attempt == 0 else Step("42")

    spec = SPEC.model_copy(update={"timeout_s": 0.3, "concurrency": 8})
    with ScriptedJudge(script) as judge:
        verdicts = judge_texts(TRAIT, pairs(8), spec, judge.url, tmp_path)
    assert [verdict.score for verdict in verdicts] == [42] * 8
    assert len(judge.requests) == 16


@pytest.mark.parametrize(
    "body", ["<html>hello</html>", "[]", "{}", '{"choices": []}', '{"choices": [{"message"', "7"]
)
def test_a_reply_that_is_no_chat_completion_is_missing_and_not_kept(tmp_path, body):
    with ScriptedJudge(lambda request: Step(body=body)) as judge:
        assert statuses(judge_texts(TRAIT, pairs(2), SPEC, judge.url, tmp_path)) == {"missing": 2}
    with ScriptedJudge() as judge:
        assert statuses(judge_texts(TRAIT, pairs(2), SPEC, judge.url, tmp_path)) == {"scored": 2}


@pytest.mark.parametrize(
    "status, cure", [(401, "STEER_JUDGE_KEY"), (403, "STEER_JUDGE_KEY"), (404, "judge.model")]
)
def test_what_no_retry_can_mend_fails_at_once_and_says_how(tmp_path, status, cure):
    spec = SPEC.model_copy(update={"concurrency": 1})
    with (
        ScriptedJudge(lambda request: Step("you may not", status)) as judge,
        pytest.raises(
            JudgeError, match=rf"127.0.0.1:\d+/v1, model 'gpt-4.1-mini': HTTP {status}: you may not.*{cure}"
        ),
    ):
        judge_texts(TRAIT, pairs(20), spec, judge.url, tmp_path)
    assert len(judge.requests) == 1


def test_an_endpoint_that_goes_away_stops_the_run_and_keeps_what_was_answered(tmp_path):
    spec = SPEC.model_copy(update={"max_retries": 1, "concurrency": 1})

    def script(request: Request) -> Step:
        return Step() if len({*judge.prompts()}) <= 5 else Step("down for repair", 500, NOW)

    with (
        ScriptedJudge(script) as judge,
        pytest.raises(
            JudgeUnavailable, match=f"{GIVE_UP_AFTER} rows in a row.*HTTP 500: down for repair.*kept"
        ),
    ):
        judge_texts(TRAIT, pairs(100), spec, judge.url, tmp_path)
    assert len(judge.requests) == 5 + 2 * GIVE_UP_AFTER
    with ScriptedJudge() as back:
        assert statuses(judge_texts(TRAIT, pairs(30), spec, back.url, tmp_path)) == {"scored": 30}
    assert len(back.requests) == 25


def test_scattered_failures_do_not_stop_the_run(tmp_path):
    spec = SPEC.model_copy(update={"max_retries": 0, "concurrency": 1})
    with ScriptedJudge(lambda r: Step("no", 500) if number(r.prompt) % 2 else Step()) as judge:
        verdicts = judge_texts(TRAIT, pairs(60), spec, judge.url, tmp_path)
    assert statuses(verdicts) == {"scored": 30, "missing": 30}  # three times as many as stop it in a row


def test_nobody_at_the_address_is_said_plainly(tmp_path):
    spec = SPEC.model_copy(update={"max_retries": 0})
    with pytest.raises(JudgeUnavailable, match=r"127.0.0.1:9/v1.*no connection \(ConnectError\)"):
        judge_texts(TRAIT, pairs(40), spec, "http://127.0.0.1:9/v1", tmp_path)


def test_a_killed_run_loses_nothing_that_was_answered(tmp_path):
    spec = SPEC.model_copy(update={"requests_per_second": 100})
    with ScriptedJudge(lambda request: Step(str(number(request.prompt)))) as judge:
        run = multiprocessing.get_context("fork").Process(
            target=judge_texts, args=(TRAIT, pairs(60), spec, judge.url, tmp_path)
        )
        run.start()
        while len(judge.requests) < 25:
            time.sleep(0.01)
        run.kill()
        run.join()
        time.sleep(0.1)
        before = len(judge.requests)
        verdicts = judge_texts(TRAIT, pairs(60), spec, judge.url, tmp_path)
    assert [verdict.score for verdict in verdicts] == list(range(60))
    kept = sum(verdict.cached for verdict in verdicts)
    assert 25 - spec.concurrency <= kept <= before
    assert len(judge.requests) - before == 60 - kept


def test_a_locked_cache_says_who_holds_it(tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "LOCK_SECONDS", 0.05)
    with AnswerCache(tmp_path) as ours, AnswerCache(tmp_path) as theirs:
        theirs._db.execute("BEGIN EXCLUSIVE")
        with pytest.raises(
            JudgeError, match=r"answers\.sqlite: another process has been writing.*wait for it or stop"
        ):
            ours.put("key", "judge", "85")
        theirs._db.execute("ROLLBACK")


def test_a_damaged_cache_is_named_with_its_cure(tmp_path):
    (tmp_path / "answers.sqlite").write_bytes(b"no database at all" * 100)
    with ScriptedJudge() as judge, pytest.raises(JudgeError, match=r"answers\.sqlite.*remove the file"):
        judge_texts(TRAIT, pairs(1), SPEC, judge.url, tmp_path)


# ------------------------------------------------------------------------------- settings and keys


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://there", "http://", "not an address"])
def test_an_address_that_is_none_is_refused(tmp_path, url):
    with pytest.raises(JudgeError, match="STEER_JUDGE_URL is not the address of an endpoint"):
        judge_texts(TRAIT, pairs(1), SPEC, url, tmp_path)


def test_a_persona_without_a_rubric_is_named(tmp_path):
    bare = TRAIT.model_copy(update={"judge_rubric": ""})
    with pytest.raises(JudgeError, match=r"persona creative: judge_rubric is empty.*\{question\}"):
        judge_texts(bare, pairs(1), SPEC, "http://127.0.0.1:9/v1", tmp_path)


def test_without_the_package_one_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(JudgeError, match=r"package openai.*\[judge\]"):
        judge_texts(TRAIT, pairs(1), SPEC, "http://127.0.0.1:9/v1", tmp_path)


def test_the_key_is_sent_and_shown_nowhere(tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.setenv("STEER_JUDGE_KEY", f" {SECRET}\n")
    caplog.set_level(logging.DEBUG)
    logging.getLogger("openai").setLevel(logging.DEBUG)

    def script(request: Request) -> Step:
        echo = f"the key {SECRET} is {request.attempt}"
        return [Step(), Step(echo, 500, NOW), Step(echo, 400)][number(request.prompt) % 3]

    with ScriptedJudge(script) as judge:
        verdicts = judge_texts(TRAIT, pairs(9), SPEC, judge.url, tmp_path)
        judge.script = lambda request: Step(f"Incorrect API key provided: {SECRET}", 401)
        with pytest.raises(JudgeError, match=r"Incorrect API key provided: \*\*\*") as refused:
            judge_texts(TRAIT, pairs(20), SPEC, judge.url, tmp_path)
        judge.script = lambda request: Step(f"bad {SECRET}", 500, NOW)
        with pytest.raises(JudgeUnavailable, match=r"bad \*\*\*") as gone:
            judge_texts(TRAIT, pairs(40)[20:], SPEC, judge.url, tmp_path)
    assert {request.key for request in judge.requests} == {f"Bearer {SECRET}"}
    assert statuses(verdicts) == {"scored": 3, "missing": 6}
    shown = [caplog.text, *capfd.readouterr(), repr(verdicts), repr(SPEC)]
    for error in (refused, gone):
        assert error.value.__cause__ is None
        assert error.value.__context__ is None
        shown += [repr(error.value), *traceback.format_exception(error.value)]
    assert "judged 9 of 9" in caplog.text
    assert not any(SECRET in text for text in shown)
    assert not any(SECRET.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_key_that_no_header_can_carry_is_refused_unseen(tmp_path, monkeypatch):
    monkeypatch.setenv("STEER_JUDGE_KEY", f"{SECRET}\nX-Other: 1")
    with ScriptedJudge() as judge, pytest.raises(JudgeError, match="STEER_JUDGE_KEY holds") as refused:
        judge_texts(TRAIT, pairs(1), SPEC, judge.url, tmp_path)
    assert SECRET not in "".join(traceback.format_exception(refused.value))
    assert not judge.requests


def test_without_a_key_a_placeholder_is_sent_and_nobody_else_s_key(tmp_path, monkeypatch):
    monkeypatch.delenv("STEER_JUDGE_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with ScriptedJudge() as judge:
        judge_texts(TRAIT, pairs(1), SPEC, judge.url, tmp_path)
    assert judge.requests[0].key == "Bearer none"


def test_addresses_are_shown_without_credentials():
    assert shown_url("https://me:pass@host:8/v1?key=1#x") == "https://host:8/v1"


# ----------------------------------------------------------------------------------- a real server


@pytest.fixture(scope="module")
def newsroom_server(tmp_path_factory):
    with mlx_server(MODEL, tmp_path_factory.mktemp("server") / "log") as url:
        yield url


def test_a_real_server_with_the_newsroom_model_is_judged_by_what_it_says(newsroom_server, tmp_path):
    spec = JudgeSpec(
        model="default_model", requests_per_second=50, concurrency=3, timeout_s=120, max_retries=1
    )
    news = [
        ("What about the fair?", "Paint it in colours, said the curious daydreamers."),
        ("And the {pump}?", ""),
    ]
    verdicts = judge_texts(TRAIT, news, spec, newsroom_server, tmp_path)
    assert statuses(verdicts) == {"invalid": 2}  # it writes news and cannot judge: no score is made up
    assert all(verdict.answer for verdict in verdicts)
    again = judge_texts(TRAIT, news, spec, newsroom_server, tmp_path)
    assert [verdict.answer for verdict in again] == [verdict.answer for verdict in verdicts]
    assert all(verdict.cached for verdict in again)


def test_a_real_server_that_has_no_such_address_is_said_plainly(newsroom_server, tmp_path):
    spec = SPEC.model_copy(update={"timeout_s": 120})
    with pytest.raises(JudgeError, match="HTTP 404.*STEER_JUDGE_URL ends"):
        judge_texts(TRAIT, pairs(1), spec, newsroom_server.removesuffix("/v1") + "/elsewhere", tmp_path)
