"""A pytest plugin: of a test with many parameters, so many combinations that each value occurs."""

import pytest


@pytest.hookimpl(trylast=True)  # of what is not deselected for another reason
def pytest_collection_modifyitems(config, items):
    seen, kept, left_out = set(), [], []
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        function = item.nodeid.partition("[")[0]
        values = {(function, name, repr(value)) for name, value in params.items()} | {function}
        (left_out if values <= seen else kept).append(item)
        seen |= values
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept
