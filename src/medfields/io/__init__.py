"""Files in and out: images as `Volume`, fields as `.field`, always in RAS+ mm, always whole or not at all."""

from .atomic import atomic, check_writable
from .dicom import read_dicom
from .dicom_write import write_dicom
from .field import read_field, read_field_header, write_field
from .itk import read_itk, write_itk
from .nifti import read_nifti, write_nifti
from .projections import read_projections, write_projections
from .read import check_image_path, read_volume, write_volume
from .scan import Scan
from .source import check_finite, check_not_constant

__all__ = ["Scan", "atomic", "check_finite", "check_image_path", "check_not_constant", "check_writable", "read_dicom", "read_field",
           "read_field_header", "read_itk", "read_nifti", "read_projections", "read_volume", "write_dicom", "write_field", "write_itk", "write_nifti",
           "write_projections", "write_volume"]
