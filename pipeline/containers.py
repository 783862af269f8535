"""The kinds of files that are opened: those that hold all their sound and pictures themselves.

FFmpeg also reads playlists, session descriptions, lists of files and series of pictures. They name other files or
addresses, which would be decoded in the place of the clip: a file of such a kind is `unreadable`, whatever its name.
"""

# FFmpeg's names of demuxers.
# fmt: off
MEDIA_FORMATS = (
    # sound and pictures
    "mov", "matroska", "avi", "flv", "live_flv", "asf", "mpeg", "mpegts", "ogg", "mxf", "rm", "ivr", "wtv", "nut",
    "nsv", "nuv", "gxf", "dv", "dhav", "ty", "pva", "film_cpk", "roq", "smk", "bink", "vivo",
    # sound alone, which is `no_video`
    "wav", "w64", "aiff", "caf", "au", "mp3", "aac", "ac3", "ac4", "eac3", "dts", "dtshd", "truehd", "flac", "amr",
    "ape", "wv", "tta", "tak", "mpc", "mpc8", "voc", "oma", "dsf", "iamf",
    # pictures alone, which is `no_audio`
    "h261", "h263", "h264", "hevc", "vvc", "av1", "obu", "ivf", "m4v", "mpegvideo", "mjpeg", "vc1", "vc1test", "dirac",
    "cavsvideo", "yuv4mpegpipe", "gif", "apng",
)
# fmt: on

# decord looks for a file's kind by itself, with an older FFmpeg and without such a list. So it only gets files whose
# kind stands in their first bytes, where no playlist can stand as well. (MPEG's two, which are looked for in a stretch
# of bytes, it would seek in by guess.)
DECORD_FORMATS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv", "asf", "ogg"})
