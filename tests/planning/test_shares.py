"""Shares of a capture: how they are written, read from the environment of what starts processes, and dealt."""

from __future__ import annotations

import pytest

from sd35h5.errors import ConfigError
from sd35h5.planning.spread_options import Spread, check_spread, chosen_gpus, resolve_share
from sd35h5.store.sharing.shares import Share, batches_of, ranges, share_of_missing

ARRAY = {"SLURM_ARRAY_TASK_ID": "12", "SLURM_ARRAY_TASK_COUNT": "3"}


@pytest.mark.parametrize(
    "planned, batch_size, cuts, count", [(7, 1, (), 3), (23, 4, (10,), 4), (2, 1, (), 5)]
)
def test_the_shares_together_are_every_batch_once(planned, batch_size, cuts, count):
    batches = batches_of(planned, batch_size, cuts)
    assert [index for batch in batches for index in batch] == list(range(planned))
    assert all(len(batch) <= batch_size for batch in batches)
    assert not [cut for cut in cuts for batch in batches if cut in batch and batch.start != cut]
    dealt = [batch for number in range(count) for batch in Share((number + 1,), count).of(batches)]
    assert sorted(dealt, key=lambda batch: batch.start) == batches


def test_what_is_missing_is_fetched_by_the_shares_that_it_belongs_to():
    batches = batches_of(20, 2)
    for missing in ([3], [0, 1, 19], range(20)):
        share = share_of_missing(batches, missing, 4)
        assert {index for batch in share.of(batches) for index in batch} >= set(missing)
        assert resolve_share(str(share), {}) == share
        for number in share.numbers:  # and by no fewer
            assert {i for batch in Share((number,), 4).of(batches) for i in batch} & set(missing)


def test_numbers_in_short_are_read_as_they_are_written():
    assert ranges([7, 1, 5, 6, 2]) == "1-2,5-7" and resolve_share("1-2,5-7/9", {}).numbers == (1, 2, 5, 6, 7)


@pytest.mark.parametrize(
    "environment, share",
    [
        ({**ARRAY, "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_MAX": "12"}, "3/3"),
        (ARRAY, "1/3"),  # 10, 11, 12: of tasks that follow each other, each has another rest
        (
            {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1",
             "SLURM_ARRAY_TASK_MAX": "7", "SLURM_ARRAY_TASK_STEP": "2"},
            "3/4",
        ),
        ({"RANK": "0", "WORLD_SIZE": "8"}, "1/8"),
        ({"RANK": "7", "WORLD_SIZE": "8"}, "8/8"),
        ({**ARRAY, "SLURM_ARRAY_TASK_MIN": "11", "SLURM_ARRAY_TASK_MAX": "13", "RANK": "1", "WORLD_SIZE": "4"}, "6/12"),
    ],
)  # fmt: skip
def test_auto_reads_slurm_arrays_torchrun_and_both_together(environment, share):
    assert str(resolve_share("auto", environment)) == share


@pytest.mark.parametrize(
    "text, environment, said",
    [
        ("4/3", {}, "--shard 4/3: 4 is outside 1..3; shards are counted from 1"),
        ("0/3", {}, "0 is outside 1..3"),
        ("3-2/3", {}, "3-2 is outside"),
        ("one of three", {}, "is no share: give I/N, as 2/8"),
        ("1/3/3", {}, "is no share"),
        ("auto", {}, "there is neither SLURM_ARRAY_TASK_ID"),
        ("auto", {"RANK": "1"}, "there is neither"),
        ("auto", {"RANK": "2", "WORLD_SIZE": "2"}, "RANK 2 is not below WORLD_SIZE 2"),
        ("auto", {**ARRAY, "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_MAX": "12"}, "have gaps .*ID/N"),
    ],
)
def test_what_is_no_share_is_refused_with_what_to_write(text, environment, said):
    with pytest.raises(ConfigError, match=said):
        resolve_share(text, environment)


@pytest.mark.parametrize(
    "options, more, said",
    [
        ({"shard": "1/2", "gpus": "all"}, {}, "--shard and --gpus each say who draws"),
        ({"workers": 2, "scheduler": "tcp://host:8786"}, {}, "--workers and --scheduler each say"),
        ({"shard": "1/2"}, {"overwrite": True}, "--overwrite would remove what other shards"),
        ({"workers": 0}, {}, "--workers 0 is too small"),
        ({"workers": 2}, {"device": "cuda:1"}, "--workers are processes on the CPU"),
        ({"gpus": "0,x"}, {}, "--gpus '0,x' is neither `all` nor numbers"),
        ({"gpus": "0,1,0"}, {}, "names a GPU twice"),
        ({"gpus": "all"}, {"device": "cpu"}, "--gpus says which devices draw, and so does --device cpu"),
    ],
)
def test_who_draws_is_said_once(options, more, said):
    with pytest.raises(ConfigError, match=said):
        check_spread(Spread(**options), **{"device": "auto", "overwrite": False, **more})


def test_gpus_are_all_or_numbers():
    assert chosen_gpus("all") is None and chosen_gpus("") == () and chosen_gpus("2,0") == (2, 0)
