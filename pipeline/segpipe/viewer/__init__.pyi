from .cases import ViewedCase as ViewedCase
from .cases import cases_of_manifest as cases_of_manifest
from .cases import cases_of_results as cases_of_results
from .cases import find_viewed as find_viewed
from .page import has_niivue as has_niivue
from .page import viewer_insert as viewer_insert
from .page import write_viewer_page as write_viewer_page
from .server import ViewServer as ViewServer
