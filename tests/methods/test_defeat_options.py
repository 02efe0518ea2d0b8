"""Options of DeFeat: mistakes in one line, and teachers that contradict their student."""

import dataclasses

import pytest

from fgkd_jax.errors import UserError
from fgkd_jax.methods import METHODS, DefeatFasterRCNN, DefeatRetinaNet
from fgkd_jax.methods.defeat import Decoupled
from fgkd_jax.methods.defeat_detectors import teaching
from fgkd_jax.methods.defeat_options import DecoupledOptions
from fgkd_jax.methods.detector import Detector

CLASSES = 3
TINY = {"name": "resnet_narrow", "stem": "imagenet", "strides": (1, 2), "stage_sizes": (1, 1),
        "dilations": (1, 1), "width": 4, "frozen_norm": "."}  # fmt: skip
WIDE = {**TINY, "width": 6, "frozen_norm": ""}
DEEPER = {**TINY, "strides": (1, 1, 2), "stage_sizes": (1, 1, 1), "dilations": (1, 1, 1)}
SHALLOW = {**TINY, "strides": (2,), "stage_sizes": (1,), "dilations": (1,)}
TEACHER = {"backbone": WIDE, "pyramid_features": 12}
CLASSES_OF = {"dense": DefeatRetinaNet, "regions": DefeatFasterRCNN}
KINDS = tuple(CLASSES_OF)


def make_method(kind, **options):
    given = {
        "num_classes": CLASSES,
        "backbone": TINY,
        "frozen_stages": 1,
        "pyramid_stages": (1, 2),
        "compared_stages": (1, 2),
        "teacher": TEACHER,
        **({"extra_levels": 1, "anchor_octaves": 2} if kind == "dense" else {}),
    }
    return CLASSES_OF[kind](**{**given, **options})


@pytest.mark.parametrize("kind", KINDS)
def test_what_ships_has_the_defaults_of_the_detector_alone(kind):
    method = CLASSES_OF[kind]
    ours, alone = method(), method.student_class()
    same = {field.name: getattr(alone, field.name) for field in dataclasses.fields(alone)}
    assert {name: getattr(ours, name) for name in same} == same


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda one: one.__name__)
def test_defaults_are_those_that_classes_state_nearest(method):
    # Where bases share a base, a dataclass takes the defaults of the first and not of the nearest.
    for field in dataclasses.fields(method):
        stated = next(
            one for one in method.__mro__ if field.name in vars(one).get("__annotations__", ())
        )
        if field.default is not dataclasses.MISSING:
            assert field.default == vars(stated)[field.name], (field.name, stated)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("dense", {"mask": "box"}, "mask is 'box'; did you mean 'boxes'"),
        ("dense", {"object_weight": -1.0}, "object_weight is -1.0; expected at least 0"),
        ("regions", {"head_background_weight": -1.0}, "head_background_weight is -1.0"),
        ("dense", {"object_temperature": 0.0}, "object_temperature is 0.0; expected a number"),
        ("dense", {"adapter_size": 2}, "adapter_size is 2; expected an odd number above 0"),
        ("dense", {"adapter_size": -1}, "adapter_size is -1; expected an odd number above 0"),
        ("dense", {"adapter_std": -1.0}, "adapter_std is -1.0; expected at least 0"),
        ("dense", {"compared_stages": (0,)}, "compared_stages is .0,.; expected stages from 1"),
        ("dense", {"compared_stages": (3,)}, "compared_stages is .3,.; .* to 2"),
        ("dense", {"teacher": {"backbon": {}}}, "teacher.backbon is not an option; did you mean"),
        ("dense", {"teacher": {"backbone": {"name": "resnet5"}}}, "backbone 'resnet5'; did you"),
        ("dense", {"teacher": {"anchor_octaves": 3}}, "teacher.anchor_octaves is 3; expected 2"),
        (
            "regions",
            {"teacher": {"backbone": {**WIDE, "strides": (2, 2)}}},
            "the strides of the teacher's pyramid are .8, 16, 32.; expected .4, 8, 16., the stu",
        ),
        (
            "regions",
            {"teacher": {"backbone": DEEPER, "pyramid_stages": (2, 3)}},
            "the strides of the teacher's stages .1, 2. are .4, 4.; expected .4, 8., the student's",
        ),
        (
            "regions",
            {"teacher": {"backbone": SHALLOW, "pyramid_stages": (0, 1), "frozen_stages": 0}},
            "compared_stages is .1, 2.; expected stages to 1, the teacher's last",
        ),
        ("dense", {"teacher": {"num_classes": 4}}, "teacher.num_classes is 4; expected 3, the stu"),
        ("regions", {"teacher": {"brightness": 0.3}}, "teacher.brightness is 0.3; expected 0.0"),
        ("dense", {"teacher": {"contrast": 0.3}}, "teacher.contrast is 0.3; expected 0.0"),
        ("dense", {"teacher": {"saturation": 0.3}}, "teacher.saturation is 0.3; expected 0.0"),
    ],
)
def test_bad_options_are_told_in_one_line(kind, options, message):
    with pytest.raises(UserError, match=message) as caught:
        make_method(kind, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_may_say_what_the_student_says(kind):
    same = {"num_classes": CLASSES, "brightness": 0.2, "anchor_ratios": [0.5, 1.0, 2.0]}
    method = make_method(kind, brightness=0.2, teacher={**TEACHER, **same})
    assert method.teaching == make_method(kind, brightness=0.2, teacher=TEACHER).teaching
    # Where the data set is not known yet, nor is what would contradict it.
    unknown = make_method(kind, num_classes=None, teacher={**TEACHER, "num_classes": 4})
    with pytest.raises(UserError, match=r"teacher\.num_classes is 4; expected 3"):
        dataclasses.replace(unknown, num_classes=3)


@pytest.mark.parametrize("owner", [Detector, DecoupledOptions, Decoupled])
def test_what_subclasses_have_to_say_is_abstract(owner):
    with pytest.raises(TypeError, match="abstract"):
        owner()


def test_an_unknown_comparison_is_told():
    with pytest.raises(UserError, match="no preset or comparison 'gausian'; did you mean"):
        teaching("gausian")
