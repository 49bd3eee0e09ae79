"""Work in several processes."""

import itertools

import pytest

from subquad.data.lra.parallel import map_in_order


@pytest.mark.parametrize("num_workers", [1, 2])
def test_results_come_in_order_and_work_may_be_endless(num_workers):
    taken = []

    def items():
        for item in itertools.count():
            taken.append(item)
            yield -item

    results = map_in_order(abs, items(), num_workers)
    assert list(itertools.islice(results, 20)) == list(range(20))
    results.close()
    assert len(taken) <= 20 + 2 * num_workers + 1


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_goes_wrong_in_a_process_is_raised(num_workers):
    with pytest.raises(ZeroDivisionError):
        list(map_in_order((1).__truediv__, [1, 0], num_workers))
