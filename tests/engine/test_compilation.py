"""Blocks through torch.compile."""

import copy

import pytest
import torch

from bootmae_mm.engine.hooks import CompileHook
from bootmae_mm.engine.hooks.compilation import compile_blocks
from tests.conftest import build, random_batch, tiny_config
from tests.engine.test_hooks import make_runner


@pytest.mark.parametrize(('batch', 'with_cp'), [(1, False), (3, False), (3, True)])
def test_compiled_blocks_compute_the_same(batch, with_cp):
    config = tiny_config()
    config['backbone']['with_cp'] = config['neck']['with_cp'] = with_cp
    plain = build(config).train()
    compiled = copy.deepcopy(plain)
    # This backend traces and differentiates like all others, but needs no compiler.
    assert compile_blocks(compiled, backend='aot_eager') == 3 + 3 + 2 + 2
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    data = random_batch(batch)
    losses = [model.parse_losses(model.loss(**data))[0] for model in (plain, compiled)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    for loss in losses:
        loss.backward()
    for (name, parameter), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        if parameter.requires_grad:
            torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize('drop_path_rate', [0.0, 0.3])
def test_a_block_is_a_single_graph(drop_path_rate):
    config = tiny_config()
    config['backbone']['drop_path_rate'] = drop_path_rate
    model = build(config).train()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compile_blocks(model, backend=backend, fullgraph=True)  # an error if a block were split
    data = random_batch(5)
    model.loss(**data)
    # Student and teacher, each with a variant for its last block; both blocks of both decoders.
    assert len(graphs) >= 2 + 4
    count = len(graphs)
    model.loss(**data)
    assert len(graphs) == count


def test_ddp_does_not_split_blocks(tmp_path):
    """By default, torch would split graphs at the buckets of DDP."""
    if torch.distributed.is_initialized():
        pytest.skip('another test left a process group behind')
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        counts = []
        for wrapped in (False, True):
            torch._dynamo.reset()
            graphs = []
            model = build(tiny_config()).train()
            compile_blocks(model, backend=lambda graph, inputs, graphs=graphs: (graphs.append(1), graph.forward)[1])
            if wrapped:
                model = torch.nn.parallel.DistributedDataParallel(model, bucket_cap_mb=0.001)
            model(**random_batch(5), mode='loss')
            counts.append(len(graphs))
        assert counts[0] == counts[1] > 0
    finally:
        torch.distributed.destroy_process_group()
        torch._dynamo.reset()


def test_a_compiled_run_and_one_with_a_broken_backend(tmp_path, image_folder, caplog):
    runner = make_runner(tmp_path, image_folder)
    hook = CompileHook(options=dict(backend='aot_eager'))
    runner.register_hook(hook)
    runner.train()
    assert runner.model.backbone.layers[0]._compiled_call_impl is not None
    hook = CompileHook(options=dict(backend='no such thing'))
    runner.model.backbone.layers[0]._compiled_call_impl = None
    hook.before_train(runner)
    log = (next((tmp_path / 'work').glob('*/*.log'))).read_text()
    assert '10 blocks are compiled' in log and 'torch.compile does not work here, blocks run without it:' in log
    assert runner.model.backbone.layers[0]._compiled_call_impl is None
    CompileHook(enabled=False).before_train(runner)


def test_pictures_compile_nothing(tmp_path, image_folder):
    counts = []
    for name, options in (('with', {}), ('without', {'default_hooks.reconstruction': None})):
        torch._dynamo.reset()
        graphs = []
        (tmp_path / name).mkdir()
        runner = make_runner(tmp_path / name, image_folder, options)
        backend = lambda graph, inputs, graphs=graphs: (graphs.append(1), graph.forward)[1]  # noqa: E731
        runner.register_hook(CompileHook(options=dict(backend=backend)))
        runner.train()
        counts.append(len(graphs))
    assert counts[0] == counts[1] > 1
