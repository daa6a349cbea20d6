"""Images to visual granularity records. One enters by `job.precompute` and `verify.verify_records`.

config     the typed description of a job
plan       what a job will do, decided before it starts, and where each piece goes on disk
unit       one unit of images, encoded and committed by an actor
beside     what is stored beside the records for the alignment with DINOv2
job        the driver: the units on Ray actors, what is seen of it, and then the merge
merge      the finished units joined to one data set
verify     whether a data set is whole
"""
