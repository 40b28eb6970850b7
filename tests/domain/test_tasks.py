"""What an operator skips: given events, when a command, then events or a refusal."""

from uuid import UUID

from domain.tasks import TASKS, Lane, SkipTask, TaskSkipped, skip_task_id, task_stream
from tests.support.kit import NOW, given

LANE = "payment-1"
SKIPPED = TaskSkipped("effect:bill", LANE, 7, "paid by hand", NOW)


def skip(consumer: str = "effect:bill", lane: str = LANE, number: int = 7, reason: str = "paid by hand") -> SkipTask:
    return SkipTask(consumer=consumer, lane=lane, number=number, reason=reason)


def test_a_task_is_skipped_once() -> None:
    given(TASKS).when(skip()).then(SKIPPED)
    given(TASKS, SKIPPED).when(skip()).then()
    given(TASKS, SKIPPED).when(skip(number=8)).then(TaskSkipped("effect:bill", LANE, 8, "paid by hand", NOW))


def test_what_makes_no_sense_is_refused() -> None:
    given(TASKS).when(skip(consumer="")).refused("task.skip_invalid", "consumer")
    given(TASKS).when(skip(lane="")).refused("task.skip_invalid", "lane")
    given(TASKS).when(skip(reason=" ")).refused("task.skip_invalid", "reason")
    given(TASKS).when(skip(reason="x" * 501)).refused("task.skip_invalid", "reason")


def test_names_depend_on_everything_that_tells_tasks_apart() -> None:
    one, other = UUID(int=1), UUID(int=2)
    ids = {
        skip_task_id(one, "a", "b", 1), skip_task_id(other, "a", "b", 1), skip_task_id(one, "c", "b", 1),
        skip_task_id(one, "a", "c", 1), skip_task_id(one, "a", "b", 2),
    }  # fmt: skip
    streams = {task_stream(one, "a", "b"), task_stream(other, "a", "b"), task_stream(one, "c", "b"), task_stream(one, "a", "c")}

    assert (len(ids), len(streams)) == (5, 4)
    assert all(stream.startswith("task-") for stream in streams)


def test_freezing_and_thawing_change_nothing_and_the_reply_names_the_task() -> None:
    state = TASKS.evolve(Lane(), SKIPPED)

    assert TASKS.thaw(TASKS.freeze(state)) == state
    assert TASKS.reply(skip(), Lane(), state, [SKIPPED])["status"] == "skipped"
