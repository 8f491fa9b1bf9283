"""Parameter counts of the paper's models, integer by integer (PolyViT, Tables 2, 4, 5, 7 and 8), on the meta device.

Counts come from closed formulas: block = 4(d^2 + d) + (dm + m) + (md + d) + 4d, tokenizer = patch volume * 3d + d + d +
positions * d, head = C(d + 1). Where the paper's rounded figure counts shared parts in its own way, the test says so.
"""

import pytest

from polytrain.modalities import Audio, Image, Video
from polytrain.model.architecture import Architecture, Head, forward_flops
from polytrain.model.polyvit import on_meta, parameters_by_part

SIZES = {
    "base": {"depth": 12, "width": 768, "heads": 12, "mlp_width": 3072},
    "large": {"depth": 24, "width": 1024, "heads": 16, "mlp_width": 4096},
}
MODALITIES = {
    "image": Image(size=(384, 384), patch=(16, 16)),
    "video": Video(frames=32, stride=2, size=(224, 224), tubelet=(4, 16, 16)),
    "audio": Audio(sample_rate=16000, seconds=8.0, mel_bins=128, patch=(16, 16)),
}
TASKS = {
    "im1k": Head("image", 1000),
    "c100": Head("image", 100),
    "c10": Head("image", 10),
    "pets": Head("image", 37),
    "r45": Head("image", 45),
    "k400": Head("video", 400),
    "mit": Head("video", 339),
    "minias": Head("audio", 527),
    "vgg": Head("audio", 309),
}


def architecture(size, tasks, adaptor_layers=0, modalities=MODALITIES):
    used = {head.modality for head in tasks.values()}
    geometries = {name: geometry for name, geometry in modalities.items() if name in used}
    return Architecture(**SIZES[size], adaptor_layers=adaptor_layers, modalities=geometries, tasks=tasks)


def parts(size, tasks=TASKS, adaptor_layers=0, modalities=MODALITIES):
    return parameters_by_part(on_meta(architecture(size, tasks, adaptor_layers, modalities)))


def of_modality(modality):
    return {task: head for task, head in TASKS.items() if head.modality == modality}


def encoders_with_shared_tokenizers(size, encoders):
    """The paper's way of counting separate models: an encoder each, but a modality's tokenizer only once."""
    nine = parts(size)
    return nine["total"] + (encoders - 1) * nine["encoder"]


@pytest.mark.parametrize(("size", "count"), [("base", 7_087_872), ("large", 12_596_224)])
def test_one_block(size, count):
    block = on_meta(architecture(size, TASKS)).encoder[0]
    assert sum(parameter.numel() for parameter in block.parameters()) == count


@pytest.mark.parametrize(
    ("part", "base", "large"),
    [
        ("encoder", 85_056_000, 302_311_424),
        ("tokenizer image", 1_034_496, 1_379_328),
        ("tokenizer video", 3_565_824, 4_754_432),
        ("tokenizer audio", 899_328, 1_199_104),
    ],
)
def test_encoder_and_tokenizers(part, base, large):
    assert (parts("base")[part], parts("large")[part]) == (base, large)


def test_three_tokenizers_together():
    for size, count in (("base", 5_499_648), ("large", 7_332_864)):
        assert sum(n for part, n in parts(size).items() if part.startswith("tokenizer")) == count


@pytest.mark.parametrize(
    ("modality", "base", "large"),
    [("image", 916_648, 1_221_800), ("video", 568_291, 757_475), ("audio", 642_884, 856_900)],
)
def test_heads_of_a_modality(modality, base, large):
    for size, count in (("base", base), ("large", large)):
        assert sum(parts(size)[f"head {task}"] for task in of_modality(modality)) == count


def test_all_heads():
    for size, count in (("base", 2_127_823), ("large", 2_836_175)):
        assert sum(n for part, n in parts(size).items() if part.startswith("head")) == count


def test_the_parts_sum_to_the_total():
    by_part = parts("base", adaptor_layers=6)
    assert by_part.pop("total") == sum(by_part.values())


@pytest.mark.parametrize(
    ("size", "adaptor_layers", "count"),
    [
        ("base", 0, 92_683_471),  # 93M in Table 2
        ("base", 6, 177_737_935),  # 178M
        ("large", 0, 312_480_463),  # 312M in Table 8
        ("large", 12, 614_789_839),  # 615M
    ],
)
def test_polyvit_of_nine_tasks(size, adaptor_layers, count):
    assert parts(size, adaptor_layers=adaptor_layers)["total"] == count


@pytest.mark.parametrize(
    ("modality", "base", "large"),
    [
        ("image", 87_007_144, 304_912_552),
        ("video", 89_190_115, 307_823_331),
        ("audio", 86_598_212, 304_367_428),  # 87M in Table 4, Base
    ],
)
def test_polyvit_of_one_modality(modality, base, large):
    tasks = of_modality(modality)
    assert (parts("base", tasks)["total"], parts("large", tasks)["total"]) == (base, large)


@pytest.mark.parametrize(("size", "count"), [("base", 262_795_471), ("large", 917_103_311)])
def test_three_polyvits_of_one_modality_each(size, count):
    assert sum(parts(size, of_modality(modality))["total"] for modality in MODALITIES) == count


@pytest.mark.parametrize(("size", "count"), [("base", 781_734_607), ("large", 2_742_442_703)])
def test_nine_single_task_models(size, count):
    assert sum(parts(size, {task: head})["total"] for task, head in TASKS.items()) == count


@pytest.mark.parametrize(
    ("size", "encoders", "count"),
    [
        ("base", 9, 773_131_471),  # 773M in Table 2
        ("large", 9, 2_730_971_855),
        ("large", 10, 3_033_283_279),  # 3033M in Table 8, which is ten encoders: a slip of the paper
    ],
)
def test_single_task_models_as_the_paper_counts_them(size, encoders, count):
    assert encoders_with_shared_tokenizers(size, encoders) == count


def test_two_audio_models_of_table_4():
    both = parts("base", of_modality("audio"))
    assert both["total"] + both["encoder"] == 171_654_212  # 172M, the tokenizer counted once
    assert sum(parts("base", {task: TASKS[task]})["total"] for task in ("minias", "vgg")) == 172_553_540


def test_large_video_models_of_table_5():
    tubelet_of_two = {"video": Video(frames=32, stride=2, size=(224, 224), tubelet=(2, 16, 16))}
    tasks = {"k400": Head("video", 400), "k600": Head("video", 600), "mit": Head("video", 339)}
    polyvit = parts("large", tasks, modalities=tubelet_of_two)
    assert polyvit["tokenizer video"] == 4_787_200
    assert sum(polyvit[f"head {task}"] for task in tasks) == 1_372_475
    assert polyvit["total"] == 308_471_099  # 308M
    assert polyvit["total"] + 2 * polyvit["encoder"] == 913_093_947  # 913M for three ViViTs, the tokenizer counted once
    single = [parts("large", {task: head}, modalities=tubelet_of_two)["total"] for task, head in tasks.items()]
    assert sum(single) == 922_668_347


@pytest.mark.parametrize(
    ("task", "modalities", "gigaflops"),
    [
        ("im1k", {"image": Image(size=(224, 224), patch=(16, 16))}, 35.1),
        ("im1k", MODALITIES, 111.0),
        ("k400", MODALITIES, 364.7),
        ("minias", MODALITIES, 74.5),  # 74.2 with one input channel, as AST has; ours repeats it to three
    ],
)
def test_forward_flops_of_base_models(task, modalities, gigaflops):
    flops = forward_flops(architecture("base", {task: TASKS[task]}, modalities=modalities), task)
    assert flops / 1e9 == pytest.approx(gigaflops, abs=0.06)


def test_adaptor_layers_cost_parameters_but_no_flops():
    without, with_adaptors = architecture("base", TASKS), architecture("base", TASKS, adaptor_layers=6)
    assert [forward_flops(without, task) for task in TASKS] == [forward_flops(with_adaptors, task) for task in TASKS]
