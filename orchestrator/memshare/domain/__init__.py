# SPDX-License-Identifier: GPL-2.0-or-later
"""What a libvirt domain's XML says of sharing, and how it is changed.

Pure: texts in, texts out. What is not ours stays as it was: comments, other metadata, other arguments.
"""
