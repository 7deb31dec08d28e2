"""The joint layouts that have a name, in the form of a JSON file of one's own (`fastmc.skeleton.Skeleton.from_plain`).

``joints`` are in array order, each with the joint that it hangs on; None is a root. ``hip``, ``spine`` and shoulders
are a joint, or the mean of several (``left hip + right hip``). Sides swap by the names, left for right.
"""

from __future__ import annotations

from typing import Any

SHOULDERS = {"left_shoulder": "left shoulder", "right_shoulder": "right shoulder"}
NO_SPINE = {  # without joints in the middle of the body: its centre is between hips and shoulders
    "hip": "left hip + right hip",
    "spine": "left hip + right hip + left shoulder + right shoulder",
    **SHOULDERS,
}

# fmt: off
LAYOUTS: dict[str, dict[str, Any]] = {
    "ntu25": {  # Kinect v2. As the field's bone list has it: a hand tip hangs on its thumb, and the thumb on the hand.
        "joints": {
            "spine base": "spine mid", "spine mid": "spine shoulder", "neck": "spine shoulder", "head": "neck",
            "left shoulder": "spine shoulder", "left elbow": "left shoulder", "left wrist": "left elbow",
            "left hand": "left wrist",
            "right shoulder": "spine shoulder", "right elbow": "right shoulder", "right wrist": "right elbow",
            "right hand": "right wrist",
            "left hip": "spine base", "left knee": "left hip", "left ankle": "left knee", "left foot": "left ankle",
            "right hip": "spine base", "right knee": "right hip", "right ankle": "right knee",
            "right foot": "right ankle",
            "spine shoulder": None, "left hand tip": "left thumb", "left thumb": "left hand",
            "right hand tip": "right thumb", "right thumb": "right hand",
        },
        "hip": "spine base", "spine": "spine mid", **SHOULDERS,
    },
    "kinect20": {  # Kinect v1
        "joints": {
            "hip centre": None, "spine": "hip centre", "shoulder centre": "spine", "head": "shoulder centre",
            "left shoulder": "shoulder centre", "left elbow": "left shoulder", "left wrist": "left elbow",
            "left hand": "left wrist",
            "right shoulder": "shoulder centre", "right elbow": "right shoulder", "right wrist": "right elbow",
            "right hand": "right wrist",
            "left hip": "hip centre", "left knee": "left hip", "left ankle": "left knee", "left foot": "left ankle",
            "right hip": "hip centre", "right knee": "right hip", "right ankle": "right knee",
            "right foot": "right ankle",
        },
        "hip": "hip centre", "spine": "spine", **SHOULDERS,
    },
    "coco17": {  # HRNet, ViTPose, YOLO and most detectors of two dimensions
        "joints": {
            "nose": None, "left eye": "nose", "right eye": "nose", "left ear": "left eye", "right ear": "right eye",
            "left shoulder": "nose", "right shoulder": "nose",
            "left elbow": "left shoulder", "right elbow": "right shoulder",
            "left wrist": "left elbow", "right wrist": "right elbow",
            "left hip": "left shoulder", "right hip": "right shoulder",
            "left knee": "left hip", "right knee": "right hip",
            "left ankle": "left knee", "right ankle": "right knee",
        },
        **NO_SPINE,
    },
    "openpose18": {  # OpenPose's COCO model: Kinetics-skeleton
        "joints": {
            "nose": "neck", "neck": None,
            "right shoulder": "neck", "right elbow": "right shoulder", "right wrist": "right elbow",
            "left shoulder": "neck", "left elbow": "left shoulder", "left wrist": "left elbow",
            "right hip": "neck", "right knee": "right hip", "right ankle": "right knee",
            "left hip": "neck", "left knee": "left hip", "left ankle": "left knee",
            "right eye": "nose", "left eye": "nose", "right ear": "right eye", "left ear": "left eye",
        },
        **NO_SPINE,
    },
    "body25": {  # OpenPose's own model
        "joints": {
            "nose": "neck", "neck": "mid hip",
            "right shoulder": "neck", "right elbow": "right shoulder", "right wrist": "right elbow",
            "left shoulder": "neck", "left elbow": "left shoulder", "left wrist": "left elbow",
            "mid hip": None,
            "right hip": "mid hip", "right knee": "right hip", "right ankle": "right knee",
            "left hip": "mid hip", "left knee": "left hip", "left ankle": "left knee",
            "right eye": "nose", "left eye": "nose", "right ear": "right eye", "left ear": "left eye",
            "left big toe": "left ankle", "left small toe": "left big toe", "left heel": "left ankle",
            "right big toe": "right ankle", "right small toe": "right big toe", "right heel": "right ankle",
        },
        "hip": "mid hip", "spine": "mid hip + neck", **SHOULDERS,
    },
    "mediapipe33": {  # MediaPipe Pose, BlazePose
        "joints": {
            "nose": None,
            "left eye inner": "nose", "left eye": "left eye inner", "left eye outer": "left eye",
            "right eye inner": "nose", "right eye": "right eye inner", "right eye outer": "right eye",
            "left ear": "left eye outer", "right ear": "right eye outer", "mouth left": "nose", "mouth right": "nose",
            "left shoulder": "nose", "right shoulder": "nose",
            "left elbow": "left shoulder", "right elbow": "right shoulder",
            "left wrist": "left elbow", "right wrist": "right elbow",
            "left pinky": "left wrist", "right pinky": "right wrist",
            "left index": "left wrist", "right index": "right wrist",
            "left thumb": "left wrist", "right thumb": "right wrist",
            "left hip": "left shoulder", "right hip": "right shoulder",
            "left knee": "left hip", "right knee": "right hip",
            "left ankle": "left knee", "right ankle": "right knee",
            "left heel": "left ankle", "right heel": "right ankle",
            "left foot index": "left ankle", "right foot index": "right ankle",
        },
        **NO_SPINE,
    },
    "smpl22": {  # the body of SMPL, SMPL-H and SMPL-X: AMASS, HumanML3D, BABEL
        "joints": {
            "pelvis": None, "left hip": "pelvis", "right hip": "pelvis", "spine 1": "pelvis",
            "left knee": "left hip", "right knee": "right hip", "spine 2": "spine 1",
            "left ankle": "left knee", "right ankle": "right knee", "spine 3": "spine 2",
            "left foot": "left ankle", "right foot": "right ankle", "neck": "spine 3",
            "left collar": "spine 3", "right collar": "spine 3", "head": "neck",
            "left shoulder": "left collar", "right shoulder": "right collar",
            "left elbow": "left shoulder", "right elbow": "right shoulder",
            "left wrist": "left elbow", "right wrist": "right elbow",
        },
        "hip": "pelvis", "spine": "spine 2", **SHOULDERS,
    },
    "h36m17": {  # Human3.6M as VideoPose3D and those after it have it
        "joints": {
            "pelvis": None, "right hip": "pelvis", "right knee": "right hip", "right ankle": "right knee",
            "left hip": "pelvis", "left knee": "left hip", "left ankle": "left knee",
            "spine": "pelvis", "thorax": "spine", "neck": "thorax", "head": "neck",
            "left shoulder": "thorax", "left elbow": "left shoulder", "left wrist": "left elbow",
            "right shoulder": "thorax", "right elbow": "right shoulder", "right wrist": "right elbow",
        },
        "hip": "pelvis", "spine": "spine", **SHOULDERS,
    },
}
# fmt: on
