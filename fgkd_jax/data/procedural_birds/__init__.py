"""`procedural_birds`: a fine-grained world that draws itself.

24 species in 8 genera, each a vector of traits (`world`). A genus is plain to see: body colour,
bill, tail and crest are its own. Its three species differ in one or two small marks, an eye ring or
the colour of the legs, a few pixels in a picture of 256x256 that a plain resize to 64x64 blurs
away. `benchmarks/birds_acceptance.py` measures that.

A picture is a scene with clutter, light, pose and partial occlusion. It is decided by (seed, split,
index) alone, through streams that are kept apart: the scene and the pose know nothing of the
species, so nothing but the bird tells it. The same example drawn with another label has the same
pixels wherever neither bird is.

**What is stable.** The drawn pixels, labels, attributes and points: draws are made from raw Philox
words, shapes are polygons with whole coordinates on a grid three times as fine, light and shading
are whole-number arithmetic; a test hashes them. Pillow 11.2.1, 11.3, 12.0 and 13.0 with NumPy 2.0
and 2.4 were seen to give the same pixels; older Pillows fill some polygons differently. The stored
JPEG (quality 92, colour not subsampled) is made from the pixels by the libjpeg inside Pillow: its
bytes are the same for the same libjpeg-turbo, and what they decode to differs from the drawn
pixels by the compression. Any change to what is drawn bumps `VERSION`, and every figure made with
the data set is measured again.

Captions (`captions`) are told when they are asked for, from the visible attributes that are stored,
with mistakes at a stated rate; they have a version of their own, and change no stored byte.

**Unseen species.** The configuration `zero_shot` draws 48 other species in the same way, 12 of them
in the split `test_unseen` alone; see `zero_shot`.

**Scenes.** The configuration `detection` draws one to six birds of `classification` in each
picture, with boxes by genus; see `detection`.
"""

from fgkd_jax.data.procedural_birds.anatomy import PARTS
from fgkd_jax.data.procedural_birds.bird import Pose, draw_bird, sample_pose
from fgkd_jax.data.procedural_birds.builder import CONFIGS, VERSION, ProceduralBirds
from fgkd_jax.data.procedural_birds.captions import CAPTIONS_VERSION, ERROR_RATE, tell
from fgkd_jax.data.procedural_birds.dataset import (
    BirdSource,
    SceneSource,
    birds_folder,
    build_birds,
    open_birds,
)
from fgkd_jax.data.procedural_birds.detection import SCENES, DrawnScene, draw_detection
from fgkd_jax.data.procedural_birds.examples import (
    PER_SPECIES,
    SEED,
    SIZE,
    DrawnExample,
    birds_world,
    draw_example,
    draw_scene,
)
from fgkd_jax.data.procedural_birds.world import (
    ATTRIBUTES,
    GROUPS,
    SMALL_GROUPS,
    Species,
    World,
    make_world,
    traits_of,
)
from fgkd_jax.data.procedural_birds.zero_shot import (
    describe_species,
    draw_zero_shot,
    seen_species,
    zero_shot_world,
)
